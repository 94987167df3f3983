"""Exact rotated moments in a file, and back."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lightning_so.contract.block import Block
from lightning_so.core.assembly import Parts
from lightning_so.core.checkpoint.resting import written
from lightning_so.core.host import Host
from lightning_so.core.matrices.matrices import MomentChange
from lightning_so.core.solves import basis
from lightning_so.core.stacks.roster import Roster
from lightning_so.core.stacks.stack import Stack
from lightning_so.errors import StateError

#: Of a weight and of its bias: what their moments are called.
PREFIXES = ("", "bias.")


def moments(parts: Parts) -> dict[str, dict[str, Tensor]]:
    """Copies of the exact rotated moments: a collective where parameters are sharded.

    Args:
        parts: Those of an engine.

    Returns:
        By block, whole tensors by key; those of a bias are called "bias." and the key.
    """
    changes = written(parts, lambda *_: None)
    found = dict[str, dict[str, Tensor]]()
    for change, states in zip(changes, parts.matrices.whole(changes), strict=True):
        named = zip(PREFIXES, states, strict=False)
        found[change.block.name] = {prefix + key: value for prefix, state in named for key, value in state.items()}
    return found


def of_rotating(
    roster: Roster, host: Host, change: Callable[[Stack, int, Host, list[dict]], None]
) -> list[MomentChange]:
    """One function as a change of the moments of each block that rotates; it is told stack and row."""
    return [
        MomentChange(block, host.states(block), partial(change, stack, row, host))
        for stack, row, block in basis.rotating(roster)
    ]


@torch.no_grad()
def restore_moments(parts: Parts, exact: dict[str, dict[str, Tensor]]) -> None:
    """Put exact rotated moments back, after the optimizer and the engine have loaded their states.

    Every rank has the same `exact` and takes its own pieces of it; it is refused on all ranks or on none.

    Args:
        parts: Those of an engine.
        exact: What `moments` gave.

    Raises:
        StateError: If a rotating block's moments in the state are not those that the optimizer has.
    """
    blocks = [block for _, _, block in basis.rotating(parts.roster)]
    kept = parts.matrices.kept(blocks)
    for block, keys in zip(blocks, kept, strict=True):
        _check_moments(block, keys, exact.get(block.name))
    for block, keys in zip(blocks, kept, strict=True):
        named = zip(PREFIXES, parts.host.states(block), keys, strict=False)
        for number, (prefix, state, of_param) in enumerate(named):
            for key in of_param:
                if key in state:  # an empty piece may have none
                    piece = parts.matrices.cut(block, number, exact[block.name][prefix + key])
                    state[key].copy_(piece.view(state[key].shape))


def _check_moments(block: Block, keys: list[list[str]], exact: dict[str, Tensor] | None) -> None:
    """Refuse moments of a block that are not those that the optimizer has."""
    parts = zip(PREFIXES, block.shapes, keys, strict=False)
    live = {prefix + key: shape for prefix, shape, of_param in parts for key in of_param}
    for name, tensor in (exact or {}).items():
        if name not in live or live[name] != tensor.shape:
            raise StateError(
                f"{block.name}: the state has {name} {tuple(tensor.shape)}, the optimizer has not: its own state "
                f"was not loaded, or is of another optimizer."
            )
    missing = [name for name in live if name not in (exact or {})]
    if missing or exact is None:
        what = ", ".join(missing) if exact is not None else "moments of it"
        raise StateError(f"{block.name} rotates, but the state has no {what}: the file is incomplete.")
