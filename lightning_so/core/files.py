"""What checkpoint files hold: moments that the base optimizer alone can go on with, and the exact ones beside them.

While blocks rotate, the optimizer's moments are in rotated coordinates; loaded without the engine they fail nothing and
train badly. So files hold plain coordinates (the first moment exactly, the second by squared overlap), the exact
tensors ride in our own state, and a stamp in `param_groups` refuses a start that has lost that state.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_so.core import bases
from lightning_so.core.errors import StateError
from lightning_so.core.method import rotator

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine

STAMP = "lightning_so"


@dataclass(frozen=True)
class Leaving:
    """What going on without the engine would change in the next update of the rotating blocks.

    Attributes:
        cosine: Between the update from plain moments and the one from rotated moments, mean over blocks.
        length: Ratio of their lengths, mean over blocks.
    """

    cosine: float
    length: float


def moments(engine: "Engine") -> dict[str, dict[str, Tensor]]:
    """The exact rotated moments by block and key, copied."""
    keys = (*engine.base.first, *engine.base.second)
    found = {}
    for _, _, block in bases.rotating(engine):
        state = engine.optimizer.state.get(block.param, {})
        found[block.name] = {key: state[key].clone() for key in keys if torch.is_tensor(state.get(key))}
    return found


def restore_moments(engine: "Engine", exact: dict[str, dict[str, Tensor]]) -> None:
    """Put exact rotated moments back, after the optimizer and the engine have loaded their states.

    Args:
        engine: The engine.
        exact: What `moments` gave.

    Raises:
        StateError: If a rotating block has no moments in the state, or the optimizer none to put them in.
    """
    for _, _, block in bases.rotating(engine):
        state = engine.optimizer.state.get(block.param, {})
        for key, tensor in exact.get(block.name, {}).items():
            if not torch.is_tensor(state.get(key)) or state[key].shape != tensor.shape:
                raise StateError(
                    f"{block.name}: the state has {key} {tuple(tensor.shape)}, the optimizer has not: its own state "
                    f"was not loaded, or is of another optimizer."
                )
        if block.name not in exact:
            raise StateError(f"{block.name} rotates, but the state has no moments of it: the file is incomplete.")
    for _, _, block in bases.rotating(engine):
        for key, tensor in exact[block.name].items():
            engine.optimizer.state[block.param][key].copy_(tensor)


@torch.no_grad()
def plain_optimizer_state(engine: "Engine", state_dict: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state dict as a file should hold it; neither the live state nor the argument changes.

    Args:
        engine: The engine.
        state_dict: What the optimizer's `state_dict()` gave.

    Returns:
        The state dict with plain moments and stamped groups.
    """
    groups = [{**group, STAMP: "plain-1"} for group in state_dict["param_groups"]]
    index_of = dict(zip(engine.params, [i for group in groups for i in group["params"]], strict=True))
    state = dict(state_dict["state"])
    for index, row, block in bases.rotating(engine):
        if (number := index_of[block.param]) in state:
            state[number] = _plain_copy(engine, index, row, state[number])
    return {**state_dict, "state": state, "param_groups": groups}


def _plain_copy(engine: "Engine", index: int, row: int, state: dict[str, Any]) -> dict[str, Any]:
    copy = {key: value.clone() if torch.is_tensor(value) else value for key, value in state.items()}
    bases.plain(engine, index, row, copy)
    return copy


@torch.no_grad()
def leaving(engine: "Engine") -> Leaving | None:
    """What going on without the engine would change now; None if nothing rotates."""
    bumps = [
        _bump(engine, index, row, state, _plain_copy(engine, index, row, state))
        for index, row, block in bases.rotating(engine)
        if (state := engine.optimizer.state.get(block.param))
    ]
    return Leaving(*(sum(values) / len(bumps) for values in zip(*bumps, strict=True))) if bumps else None


def _bump(engine: "Engine", index: int, row: int, rotated: dict, plain: dict) -> tuple[float, float]:
    """Cosine and length ratio of m / sqrt(v) from plain moments against the one from rotated moments."""
    stack, second = engine.stacks[index], engine.base.second[0]
    first = next((key for key in engine.base.first if torch.is_tensor(plain.get(key))), None)

    def update(state: dict) -> Tensor:
        v = state[second].to(stack.dtype).reshape(stack.shape)
        m = torch.ones_like(v) if first is None else state[first].to(stack.dtype).reshape(stack.shape)
        return m / v.sqrt().clamp_min(torch.finfo(v.dtype).tiny ** 0.5)

    there = rotator(stack).turn(stack.stats, update(rotated)[None], [row], leave=True)[0].flatten()
    alone = update(plain).flatten()
    cosine = torch.nn.functional.cosine_similarity(there, alone, dim=0)
    return float(cosine), float(alone.norm() / there.norm().clamp_min(1e-30))


def hidden_weights(engine: "Engine") -> dict[int, Tensor]:
    """Saved weights by address of their parameter, in the middle of a step: a file must not hold zeros."""
    return {
        param.data_ptr(): saved
        for batch in engine.acting
        for param, saved in zip(batch.params, batch.saved, strict=True)
    }


def check_stamp(engine: "Engine") -> None:
    """Refuse an optimizer that was loaded from one of our files while our own state was not.

    Args:
        engine: The engine.

    Raises:
        StateError: If a group carries the stamp.
    """
    if any(STAMP in group for group in engine.optimizer.param_groups):
        raise StateError(
            f"the checkpoint was written with lightning_so (param_groups carry {STAMP!r}), but the state of "
            f"SecondOrder is missing: keep checkpoint['callbacks'], or delete {STAMP!r} from its "
            f"optimizer_states' param_groups to start cold from its moments, which are in plain coordinates."
        )
