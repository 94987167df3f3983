"""From what a step observed to factors: windows of rows travel to their owners in flat buckets and are folded there.

They leave before the step, or during the backward pass where the strategy tells which layers are done with theirs.
Only the owner of a block has its factors; what it solves goes to all. Before a save they go to all, too.
"""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_so.comm import spread
from lightning_so.contract.block import Stack
from lightning_so.contract.method import Tapped
from lightning_so.core.schedule.units import Place, owner_of
from lightning_so.core.stacks.stack import solver, tapped
from lightning_so.linalg.triangle import pack, unpack

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def fold(engine: "Engine", places: list[Place], scale: float) -> None:
    """Sum the windows of watched blocks over ranks, each at its owner, and fold them there.

    What every rank needs is summed in one more bucket, and folded everywhere.

    Args:
        engine: The engine.
        places: (stack, row) of the blocks, equal on all ranks.
        scale: K^2 over micro-batches.
    """
    _fold_common(engine, places, scale)  # first: a window that went to its owner is forgotten
    if engine.comm.ranks > 1:
        _send(engine, [place for place in places if place not in engine.early])
        for bucket in dict.fromkeys(engine.early[place] for place in places):
            bucket.land({place for place in places if engine.early[place] is bucket})
    for index, row in places:
        engine.early.pop((index, row), None)
        stack = engine.stacks[index]
        if engine.comm.rank == owner_of(engine, (index, row)):
            _tapped(stack).fold(stack.stats, row, engine.report.step, scale)
        else:
            _tapped(stack).clear(stack.stats, row)


@torch.no_grad()
def start(engine: "Engine", params: Iterable[Tensor]) -> None:
    """Send off the windows of layers whose backward pass is over, and go on while they travel.

    Of several backward passes before a step, the last one counts.

    Args:
        engine: The engine.
        params: Parameters that have their gradients now; the same, in the same order of calls, on every rank.
    """
    done = set(params)
    with engine.stopwatch.stage("observe"):
        for recorder in engine.recorders:
            if not recorder.ours:
                _send(engine, [place for place, block in recorder.watched.items() if block.param in done])


def _send(engine: "Engine", places: list[Place]) -> None:
    """Send off the windows of blocks, one bucket an owner."""
    for owner in range(engine.comm.ranks):
        if mine := [place for place in places if owner_of(engine, place) == owner]:
            engine.early.update(dict.fromkeys(mine, Bucket(engine, mine, owner)))


class Bucket:
    """Copies of the windows of some blocks, on their way to their owner."""

    def __init__(self, engine: "Engine", places: list[Place], owner: int) -> None:
        """Send them off."""
        self._windows = {(index, row): _window(engine, index, row) for index, row in places}
        self._here = engine.comm.rank == owner
        self._parts = [pack(tensors) for tensors in self._windows.values()]
        self._sum = torch.cat(self._parts)
        self._arrived = engine.comm.start_reduce(self._sum, owner)

    def land(self, wanted: Collection[Place]) -> None:
        """Wait; at the owner, put sums in the place of its own windows.

        Args:
            wanted: Of which blocks.
        """
        self._arrived()
        if self._here:
            sums = self._sum.split([part.numel() for part in self._parts])
            for (place, tensors), total in zip(self._windows.items(), sums, strict=True):
                if place in wanted:
                    unpack(total, tensors)


def _window(engine: "Engine", index: int, row: int) -> list[Tensor]:
    stack = engine.stacks[index]
    return _tapped(stack).windows(stack.stats, row)


def _fold_common(engine: "Engine", places: list[Place], scale: float) -> None:
    """Sum over ranks what every rank needs of the windows, and fold it."""
    stacks = [(engine.stacks[index], row) for index, row in places]
    tensors = [window for stack, row in stacks for window in _tapped(stack).common(stack.stats, row)]
    if engine.comm.ranks > 1 and tensors:
        bucket = torch.cat([tensor.flatten() for tensor in tensors])
        engine.comm.sum(bucket)
        for tensor, part in zip(tensors, bucket.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))
    for stack, row in stacks:
        _tapped(stack).fold_common(stack.stats, row, engine.report.step, scale)


def _tapped(stack: Stack) -> Tapped:
    """The method of a stack whose layers are watched."""
    method = tapped(stack)
    assert method is not None
    return method


def everywhere(engine: "Engine") -> None:
    """Give every rank the owners' factors: a collective, for saving at the boundary of a step."""
    if engine.comm.ranks == 1 or not engine.recorders or engine.layout.split:
        return
    factors: list[list[Tensor]] = [[] for _ in range(engine.comm.ranks)]
    for index, stack in enumerate(engine.stacks):
        if not tapped(stack) or not (method := solver(stack)):
            continue
        for row in range(len(stack.blocks)):
            owner = owner_of(engine, (index, row))
            factors[owner] += [tensor[row] for _, tensor in method.factors(stack.stats)]
    for tensors, copies in zip(factors, spread(engine.comm, factors), strict=True):
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(copy)
