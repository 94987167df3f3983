"""Bytes that are held."""

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def state_bytes(engine: "Engine") -> int:
    """Extra memory held: factors, windows, bases, saved parameters and work space."""
    tensors = [tensor for stack in engine.stacks for tensor in (stack.hidden, *held(stack.stats))]
    return sum(tensor.nbytes for tensor in tensors if not tensor.is_meta) + engine.layout.scratch.nbytes()


def held(stats: Any) -> Iterator[Tensor]:
    """All tensors in what a method keeps of a stack, at this moment."""
    if isinstance(stats, Tensor):
        yield stats
    elif isinstance(stats, list | tuple | dict):
        for part in stats.values() if isinstance(stats, dict) else stats:
            yield from held(part)
    elif is_dataclass(stats):
        yield from held(vars(stats))


def costs(engine: "Engine") -> dict[str, tuple[int, list[int]]]:
    """By block name, the extra bytes held for it (work space apart) and, where there are several, its units' owners.

    Args:
        engine: The engine.

    Returns:
        Both; where parameters are sharded, bytes on all ranks together.
    """
    found = {}
    for index, stack in enumerate(engine.stacks):
        rows, cols = stack.shape
        hidden = len(stack.blocks) * rows * cols * stack.hidden.itemsize
        size = hidden + sum(tensor.nbytes for tensor in held(stack.stats))
        for row, block in enumerate(stack.blocks):
            owners = sorted({engine.schedule.owner[unit] for unit in engine.units_of[index][row]})
            found[block.name] = size // len(stack.blocks), owners if engine.comm.ranks > 1 else []
    return found
