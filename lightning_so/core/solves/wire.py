"""The results of solves as bytes, for their way to other ranks.

Of each unit, padded to 8 bytes: the value, the permutation if there is one as int32, whether it is good as int32.
"""

import math

import torch
from torch import Tensor

from lightning_so.contract.block import StackSpec
from lightning_so.contract.unit import Unit
from lightning_so.linalg.result import Solved


def wire_of(solved: Solved, stack: StackSpec, unit: Unit) -> Tensor:
    """What travels of results: all of them, or which are good where their owner alone works on the blocks.

    Args:
        solved: The results of k units of one kind.
        stack: The stack of one of them.
        unit: One of them.

    Returns:
        Bytes, shape (k, `unit_bytes`).
    """
    if stack.shared:
        return pack(solved, unit_bytes(stack, unit))
    return _padded([solved.good.int()[:, None].view(torch.uint8)], 8)


def solved_of(wire: Tensor, stack: StackSpec, unit: Unit) -> Solved:
    """The results in what has travelled: all of them, or which are good, without values."""
    if stack.shared:
        return unpack(wire, unit, stack.dtype)
    return Solved(torch.empty(len(wire), 0, device=wire.device), wire[:, :4].clone().view(torch.int32)[:, 0] != 0)


def unit_bytes(stack: StackSpec, unit: Unit) -> int:
    """Bytes of a unit on the wire."""
    return whole_bytes(stack, unit) if stack.shared else 8


def whole_bytes(stack: StackSpec, unit: Unit) -> int:
    """Bytes of all of a unit's result."""
    return -(-(math.prod(unit.shape) * stack.dtype.itemsize + 4 * unit.columns + 4) // 8) * 8


def pack(solved: Solved, size: int) -> Tensor:
    """The bytes of k results, shape (k, size)."""
    numbers = [] if solved.order is None else [solved.order.int()]
    parts = [solved.value.flatten(1), *numbers, solved.good.int()[:, None]]
    return _padded([part.contiguous().view(torch.uint8) for part in parts], size)


def _padded(parts: list[Tensor], size: int) -> Tensor:
    """Bytes side by side, and zeros up to a size."""
    used = sum(part.shape[1] for part in parts)
    rest = torch.zeros(len(parts[0]), size - used, dtype=torch.uint8, device=parts[0].device)
    return torch.cat([*parts, rest], 1)


def unpack(wire: Tensor, unit: Unit, dtype: torch.dtype) -> Solved:
    """The results in the bytes of k units, shape (k, size)."""
    cut = math.prod(unit.shape) * dtype.itemsize
    numbers = wire[:, cut : cut + 4 * (unit.columns + 1)].contiguous().view(torch.int32)
    value = wire[:, :cut].contiguous().view(dtype).view(-1, *unit.shape)
    return Solved(value, numbers[:, -1] != 0, numbers[:, :-1].long() if unit.columns else None)
