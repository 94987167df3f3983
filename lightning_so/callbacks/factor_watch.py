"""The factors that engines keep, looked at a block at a time."""

from collections.abc import Iterable

from torch import Tensor

from lightning_so.contract.memory import KeepsTriangles
from lightning_so.core.engine import Engine
from lightning_so.core.stacks.stack import Stack
from lightning_so.linalg.triangle import square
from lightning_so.monitor.factors import FactorHealth, factor_health


def look(engines: Iterable[Engine], turn: int) -> tuple[str, FactorHealth] | None:
    """Look at the factors of one block: of those that this rank has folded, which owners alone do with some methods.

    Args:
        engines: The engines.
        turn: Whose turn it is: blocks are looked at one after the other, and then again.

    Returns:
        The block's name, and what was seen; None where there are no factors, or the block's are empty here.
    """
    blocks = [
        (block.name, row, stack)
        for engine in engines
        for stack in engine.stacks
        if stack.solver is not None
        for row, block in enumerate(stack.blocks)
    ]
    if not blocks:
        return None
    name, row, stack = blocks[turn % len(blocks)]
    found = factor_health([factor for factor in _matrices(stack, row) if not factor.is_meta])
    return None if found is None else (name, found)


def _matrices(stack: Stack, row: int) -> list[Tensor]:
    """What a method keeps of a block that is matrices, and not diagonals, weights or counts."""
    if isinstance(stack.method, KeepsTriangles):
        return stack.method.whole(stack.stats, row)
    kept = [(key, factor[row]) for key, factor in stack.solving.factors(stack.stats)]
    return [factor for key, factor in kept if ".factor." in key and square(factor)]
