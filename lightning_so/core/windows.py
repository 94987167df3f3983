"""From what a step observed to factors: windows of rows travel to their owners in flat buckets and are folded there.

Only the owner of a block has its factors; what it solves goes to all. Before a save they go to all, too.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_so.core.block import Stack
from lightning_so.core.method import Tapped, observer, solver, tapped
from lightning_so.core.schedule import FOLDS
from lightning_so.linalg.triangle import compact_shape, pack, unpack

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine

Place = tuple[int, int]


def owner_of(engine: "Engine", place: Place) -> int:
    """The rank that folds and solves a block."""
    index, row = place
    return engine.schedule.owner[engine.units_of[index][row][0]]


def observe(engine: "Engine") -> None:
    """Fold what the methods observe, rows or gradients; nothing for methods that observe none."""
    for recorder in engine.recorders:
        fold(engine, recorder.blocks(), recorder.factor())
        recorder.spend()
    for live, stack in zip(engine.live, engine.stacks, strict=True):
        if live and (method := observer(stack)):
            grads = [grad for row in live if (grad := stack.blocks[row].param.grad) is not None]
            rows = None if len(live) == len(stack.blocks) else live
            method.observe(stack.stats, engine.scratch.gather(stack, grads, 0), rows)


def fold(engine: "Engine", places: list[Place], scale: float) -> None:
    """Reduce the windows of watched blocks to their owners, one bucket an owner, and fold them there.

    What every rank needs is summed in one more bucket, and folded everywhere.

    Args:
        engine: The engine.
        places: (stack, row) of the blocks, equal on all ranks.
        scale: K^2 over micro-batches.
    """
    comm = engine.comm
    _fold_common(engine, places, scale)  # first: a window that went to its owner is forgotten
    for owner in range(comm.ranks):
        mine = [place for place in places if owner_of(engine, place) == owner]
        if not mine:
            continue
        if comm.ranks > 1:
            stacks = [(engine.stacks[index], row) for index, row in mine]
            tensors = [window for stack, row in stacks for window in _tapped(stack).windows(stack.stats, row)]
            bucket = pack(tensors)
            comm.reduce(bucket, owner)
            if comm.rank == owner:
                unpack(bucket, tensors)
        for index, row in mine:
            stack = engine.stacks[index]
            if comm.rank == owner:
                _tapped(stack).fold(stack.stats, row, engine.report.step, scale)
            else:
                _tapped(stack).clear(stack.stats, row)


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


def traffic(engine: "Engine") -> float:
    """Predicted bytes of windows that this rank sends per step, at the largest interval."""
    total = 0.0
    for index, stack in enumerate(engine.stacks):
        if engine.comm.ranks == 1 or not (method := tapped(stack)):
            continue
        for row in range(len(stack.blocks)):
            every = max(1, engine.schedule.units[engine.units_of[index][row][0]].final // FOLDS)
            total += sum(window.nbytes for window in method.common(stack.stats, row)) / every
            if owner_of(engine, (index, row)) != engine.comm.rank:
                for window in method.windows(stack.stats, row):
                    total += window.itemsize * math.prod(compact_shape(window)) / every
    return total


def everywhere(engine: "Engine") -> None:
    """Give every rank the owners' factors: a collective, for saving at the boundary of a step."""
    if engine.comm.ranks == 1 or not engine.recorders:
        return
    factors: list[list[Tensor]] = [[] for _ in range(engine.comm.ranks)]
    for index, stack in enumerate(engine.stacks):
        if not tapped(stack) or not (method := solver(stack)):
            continue
        for row in range(len(stack.blocks)):
            owner = owner_of(engine, (index, row))
            factors[owner] += [tensor[row] for _, tensor in method.factors(stack.stats)]
    sizes = [sum(tensor.nbytes for tensor in tensors) for tensors in factors]
    nothing = torch.empty(0, dtype=torch.uint8, device=engine.stacks[0].device)
    own = [tensor.contiguous().flatten().view(torch.uint8).to(nothing.device) for tensor in factors[engine.comm.rank]]
    flat = torch.cat([nothing, *own])
    for tensors, wire in zip(factors, engine.comm.gather(flat, sizes), strict=True):
        at = 0
        for tensor in tensors:
            part = wire[at : at + tensor.nbytes].clone()
            tensor.copy_(part.view(tensor.dtype).view(tensor.shape))
            at += tensor.nbytes
