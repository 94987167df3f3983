"""Solve each unit on its owner and share the results: one padded exchange a step, sizes known to all beforehand.

Wire format of one unit, padded to 8 bytes: the value, the permutation if there is one as int32, whether it is good and
the rungs that were tried as int32.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_so.core.block import Stack
from lightning_so.core.schedule import Unit
from lightning_so.linalg.result import Result

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def solve(engine: "Engine", due: list[int], how: Callable[[Stack, Unit], Result]) -> list[Result]:
    """The results of the due units on every rank; each was solved by its owner alone.

    Args:
        engine: The engine.
        due: Numbers of units in the schedule, equal on all ranks.
        how: Solves a unit of a stack.

    Returns:
        One result a unit.
    """
    units, owner, comm = engine.schedule.units, engine.schedule.owner, engine.comm
    mine: dict[int, Result] = {}
    for number in due:
        if owner[number] == comm.rank:
            mine[number] = how(engine.stacks[units[number].stack], units[number])
    engine.report.solved_here += len(mine)
    if comm.ranks == 1 or not due:
        return [mine[number] for number in due]
    sizes = [0] * comm.ranks
    for number in due:
        sizes[owner[number]] += unit_bytes(engine, number)
    device = engine.stacks[units[due[0]].stack].device
    packed = [_pack(engine, result, n) for n, result in mine.items()]
    wires = comm.gather(torch.cat(packed) if packed else torch.empty(0, dtype=torch.uint8, device=device), sizes)
    offsets, results = [0] * comm.ranks, []
    for number in due:
        rank, size = owner[number], unit_bytes(engine, number)
        wire = wires[rank][offsets[rank] : offsets[rank] + size]
        offsets[rank] += size
        results.append(_unpack(engine, wire, number))
    # The owner keeps its own: where blocks are worked on by their owners alone, the others have the verdict only.
    return [mine[number] if number in mine else result for number, result in zip(due, results, strict=True)]


def _pack(engine: "Engine", result: Result, number: int) -> Tensor:
    """What travels of a result: all of it, or whether it is good where its owner alone works on the block."""
    unit = engine.schedule.units[number]
    if not engine.stacks[unit.stack].shared:
        return _verdict(result).view(torch.uint8)
    return pack(result, unit_bytes(engine, number), unit.columns)


def _unpack(engine: "Engine", wire: Tensor, number: int) -> Result:
    """The other side of it."""
    unit = engine.schedule.units[number]
    if not engine.stacks[unit.stack].shared:
        ok, attempts = wire.clone().view(torch.int32).tolist()
        return Result(torch.empty(0), bool(ok), None, attempts)
    return unpack(wire, unit, engine.stacks[unit.stack].dtype)


def unit_bytes(engine: "Engine", number: int) -> int:
    """Bytes of a unit on the wire."""
    unit = engine.schedule.units[number]
    if not engine.stacks[unit.stack].shared:
        return 8
    itemsize = engine.stacks[unit.stack].dtype.itemsize
    return -(-(math.prod(unit.shape) * itemsize + 4 * unit.columns + 8) // 8) * 8


def pack(result: Result, size: int, columns: int) -> Tensor:
    """The bytes of a result, shape (size,)."""
    tail = _verdict(result)
    order = result.order
    if order is None:
        order = torch.zeros(columns, dtype=torch.int32, device=tail.device)  # A failed solve.
    numbers = torch.cat([order.flatten().to(torch.int32), tail])
    parts = [result.value.contiguous().view(-1).view(torch.uint8), numbers.view(torch.uint8)]
    wire = torch.zeros(size, dtype=torch.uint8, device=result.value.device)
    torch.cat(parts, out=wire[: sum(part.numel() for part in parts)])
    return wire


def _verdict(result: Result) -> Tensor:
    """Whether a result is good, and the rungs that were tried."""
    return torch.tensor([result.ok, result.attempts], dtype=torch.int32, device=result.value.device)


def unpack(wire: Tensor, unit: Unit, dtype: torch.dtype) -> Result:
    """The result in the bytes of one unit."""
    cut = math.prod(unit.shape) * dtype.itemsize
    numbers = wire[cut : cut + 4 * (unit.columns + 2)].clone().view(torch.int32)
    ok, attempts = numbers[-2:].tolist()
    order = numbers[:-2].long() if unit.columns else None
    return Result(wire[:cut].clone().view(dtype).view(unit.shape), bool(ok), order, attempts)
