"""What checkpoint files hold: moments that the base optimizer alone can go on with, and the exact ones beside them.

While blocks rotate, the optimizer's moments are in rotated coordinates; loaded without the engine they fail nothing and
train badly. So files hold plain coordinates (the first moment exactly, the second by squared overlap), the exact
tensors ride in our own state, and a stamp in `param_groups` refuses a start that has lost that state.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_so.core import bases
from lightning_so.core.block import Block
from lightning_so.core.errors import StateError
from lightning_so.core.method import turning

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
    """The exact rotated moments by block and key, copied; those of a bias are called "bias." and the key."""
    return {
        block.name: {name: state[key].clone() for name, state, key in _moments(engine, block) if key in state}
        for _, _, block in bases.rotating(engine)
    }


def _moments(engine: "Engine", block: Block) -> Iterator[tuple[str, dict, str]]:
    """Name, state and key of every moment that a block's parameters may have."""
    for prefix, state in zip(("", "bias."), engine.layout.states(block), strict=False):
        for key in (*engine.base.first, *engine.base.second):
            yield prefix + key, {k: v for k, v in state.items() if torch.is_tensor(v)}, key


def restore_moments(engine: "Engine", exact: dict[str, dict[str, Tensor]]) -> None:
    """Put exact rotated moments back, after the optimizer and the engine have loaded their states.

    Args:
        engine: The engine.
        exact: What `moments` gave.

    Raises:
        StateError: If a rotating block's moments in the state are not those that the optimizer has.
    """
    for _, _, block in bases.rotating(engine):
        live = {name: state[key] for name, state, key in _moments(engine, block) if key in state}
        for name, tensor in exact.get(block.name, {}).items():
            if name not in live or live[name].shape != tensor.shape:
                raise StateError(
                    f"{block.name}: the state has {name} {tuple(tensor.shape)}, the optimizer has not: its own state "
                    f"was not loaded, or is of another optimizer."
                )
        missing = [name for name in live if name not in exact.get(block.name, {})]
        if missing or block.name not in exact:
            what = ", ".join(missing) if block.name in exact else "moments of it"
            raise StateError(f"{block.name} rotates, but the state has no {what}: the file is incomplete.")
    for _, _, block in bases.rotating(engine):
        for name, state, key in _moments(engine, block):
            if key in state:
                state[key].copy_(exact[block.name][name])


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
        numbers = [index_of[p] for p in block.params]
        if all(number in state for number in numbers):
            copies = _plain_copies(engine, index, row, [state[number] for number in numbers])
            state.update(zip(numbers, copies, strict=True))
    return {**state_dict, "state": state, "param_groups": groups}


def _plain_copies(engine: "Engine", index: int, row: int, states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    copies = [{key: v.clone() if torch.is_tensor(v) else v for key, v in state.items()} for state in states]
    bases.plain(engine, index, row, copies)
    return copies


@torch.no_grad()
def leaving(engine: "Engine") -> Leaving | None:
    """What going on without the engine would change now; None if nothing rotates."""
    bumps = [
        _bump(engine, index, row, states, _plain_copies(engine, index, row, states))
        for index, row, block in bases.rotating(engine)
        if all(states := engine.layout.states(block))
    ]
    return Leaving(*(sum(values) / len(bumps) for values in zip(*bumps, strict=True))) if bumps else None


def _bump(engine: "Engine", index: int, row: int, rotated: list[dict], plain: list[dict]) -> tuple[float, float]:
    """Cosine and length ratio of m / sqrt(v) from plain moments against the one from rotated moments."""
    stack, second = engine.stacks[index], engine.base.second[0]
    first = next((key for key in engine.base.first if torch.is_tensor(plain[0].get(key))), None)

    def matrix(states: list[dict], key: str) -> Tensor:
        return torch.cat([state[key].to(stack.dtype).reshape(stack.shape[0], -1) for state in states], 1)

    def update(states: list[dict]) -> Tensor:
        v = matrix(states, second)
        m = torch.ones_like(v) if first is None else matrix(states, first)
        return m / v.sqrt().clamp_min(torch.finfo(v.dtype).tiny ** 0.5)

    there = turning(stack).turn(stack.stats, update(rotated)[None], [row], leave=True)[0].flatten()
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
