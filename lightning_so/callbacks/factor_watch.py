"""The factors that engines keep, looked at a block at a time."""

from collections.abc import Iterable

from torch import Tensor

from lightning_so.core.engine import Engine
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
    assert stack.solver is not None
    kept = stack.solver.factors(stack.stats)
    found = factor_health([factor[row] for key, factor in kept if _matrices(key, factor)])
    return None if found is None else (name, found)


def _matrices(key: str, factor: Tensor) -> bool:
    """Whether what a method keeps is matrices with numbers, and not a diagonal, a weight or a count."""
    here = not factor.is_meta  # Of other ranks' blocks only the shapes are known.
    return here and ".factor." in key and factor.ndim > 2 and factor.shape[-1] == factor.shape[-2]
