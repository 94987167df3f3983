"""From what a step observed to factors: windows of rows travel to their owners in flat buckets and are folded there.

Only the owner of a block has its factors; what it solves goes to all. Before a save they go to all, too.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_so.comm import Local
from lightning_so.core.batch import Batch
from lightning_so.core.block import Stack
from lightning_so.core.method import Tapped, observer, solver, tapped
from lightning_so.linalg.triangle import pack, unpack

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
    shown = [batch for batches in engine.batches for batch in batches if observer(batch.stack)]
    engine.layout.look([(batch, engine.layout.gradients(batch)) for batch in shown], _show)


def _show(batch: Batch, gradients: Tensor) -> None:
    method = observer(batch.stack)
    assert method is not None
    method.observe(batch.stack.stats, gradients, batch.rows)


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


def spread(comm: Local, tensors: list[list[Tensor]]) -> list[list[Tensor]]:
    """Copies on every rank of what each has: one padded all-gather.

    Args:
        comm: How ranks talk.
        tensors: By rank, what it has; of the others, tensors of the same shapes and dtypes.

    Returns:
        By rank, copies on the CPU.
    """
    sizes = [sum(tensor.nbytes for tensor in of_rank) for of_rank in tensors]
    own = [tensor.contiguous().flatten().view(torch.uint8).cpu() for tensor in tensors[comm.rank]]
    wires = comm.gather(torch.cat([torch.empty(0, dtype=torch.uint8), *own]), sizes)
    found = []
    for of_rank, wire in zip(tensors, wires, strict=True):
        parts = wire.split([tensor.nbytes for tensor in of_rank])
        found.append([p.clone().view(t.dtype).view(t.shape) for p, t in zip(parts, of_rank, strict=True)])
    return found
