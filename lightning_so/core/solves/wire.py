"""The results of solves as bytes, for their way to other ranks.

The result of one unit, padded to 8 bytes: the value, the permutation if there is one as int32, whether it is good and
the rungs that were tried as int32.
"""

import math

import torch
from torch import Tensor

from lightning_so.contract.block import StackSpec
from lightning_so.contract.unit import Unit
from lightning_so.linalg.result import Result


def wire_of(result: Result, stack: StackSpec, unit: Unit) -> Tensor:
    """What travels of a result: all of it, or whether it is good where its owner alone works on the block."""
    if not stack.shared:
        return _verdict(result).view(torch.uint8)
    return pack(result, unit_bytes(stack, unit), unit.columns)


def result_of(wire: Tensor, stack: StackSpec, unit: Unit) -> Result:
    """The result in what has travelled: all of it, or whether it is good, without a value."""
    if not stack.shared:
        ok, attempts = wire.clone().view(torch.int32).tolist()
        return Result(torch.empty(0), bool(ok), None, attempts)
    return unpack(wire, unit, stack.dtype)


def unit_bytes(stack: StackSpec, unit: Unit) -> int:
    """Bytes of a unit on the wire."""
    return whole_bytes(stack, unit) if stack.shared else 8


def whole_bytes(stack: StackSpec, unit: Unit) -> int:
    """Bytes of all of a unit's result."""
    return -(-(math.prod(unit.shape) * stack.dtype.itemsize + 4 * unit.columns + 8) // 8) * 8


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
