"""An optimizer at rest: it holds plain moments, as after a training, and files get the exact ones all the same."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_so.core.assembly import Parts
from lightning_so.core.host import Host
from lightning_so.core.matrices.matrices import MomentChange
from lightning_so.core.solves import basis
from lightning_so.core.stacks.roster import Exact
from lightning_so.core.stacks.stack import Stack

#: Dtypes that take numbers for their bits, by bytes.
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def rest(parts: Parts) -> None:
    """Make the moments of all blocks plain, and keep the exact ones for files; blocks that then step enter anew.

    A collective where parameters are sharded.

    Args:
        parts: Those of an engine, between steps.
    """
    places, kept = basis.places(parts.roster), list[list[dict[str, Tensor]]]()
    changes = list[MomentChange]()
    for index, row in places:
        stack = parts.stacks[index]
        states = parts.host.states(stack.blocks[row])
        # On the CPU, where a Trainer takes the optimizer's own.
        kept.append([{k: v.to("cpu", copy=True) for k, v in parts.host.moments(state).items()} for state in states])
        changes.append(MomentChange.of_one(stack.blocks[row], states, partial(basis.plain, stack, row, parts.host)))
    parts.matrices.change_moments(changes)
    basis.leave(parts.roster, places)
    for place, change, exact in zip(places, changes, kept, strict=True):
        parts.roster.away[place] = Exact(exact, _fingerprints(parts, change.states[0]))


def written(parts: Parts, change: Callable[[Stack, int, Host, list[dict]], None]) -> list[MomentChange]:
    """One function as a change of the exact moments of each block that rotates, or rests; it is told stack and row.

    Args:
        parts: Those of an engine.
        change: The function.

    Returns:
        One a block; states of those that rest are copies, on the device where the block is worked on.
    """
    found = []
    for index, stack in enumerate(parts.stacks):
        for row, block in enumerate(stack.blocks):
            exact = parts.roster.away.get((index, row))
            if exact is not None:
                states: list[dict[str, Any]] = [
                    {key: value.to(stack.device) for key, value in state.items()} for state in exact.states
                ]
            elif stack.rotates and parts.roster.warm[index][row]:
                states = parts.host.states(block)
            else:
                continue
            found.append(MomentChange.of_one(block, states, partial(change, stack, row, parts.host)))
    return found


def forget_stale(parts: Parts) -> None:
    """Forget exact moments of blocks at rest whose plain ones have changed since, in a loop by hand or by a load.

    A collective where parameters are sharded.

    Args:
        parts: Those of an engine.
    """
    resting = [place for place, exact in parts.roster.away.items() if exact is not None]
    if not resting:
        return
    stale = []
    for index, row in resting:
        exact, states = parts.roster.away[index, row], parts.host.states(parts.stacks[index].blocks[row])
        assert exact is not None
        stale.append(_fingerprints(parts, states) != exact.plain)
    if parts.matrices.sharded:
        stale = parts.host.world.anywhere(stale)
    for place, changed in zip(resting, stale, strict=True):
        if changed:
            parts.roster.away[place] = None


def _fingerprints(parts: Parts, states: list[dict[str, Any]]) -> list[int]:
    """One number a moment: the sum of its bits, which any step changes; the same on any device."""
    found = [value for state in states for value in parts.host.moments(state).values()]
    return [int(value.contiguous().view(INTEGERS[value.itemsize]).sum(dtype=torch.int64)) for value in found]
