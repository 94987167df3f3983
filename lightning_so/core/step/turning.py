"""The rotations of a step, their products made in the way that was chosen; what leaves a basis may be polished."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from torch import Tensor

from lightning_so.actions.polish import polished
from lightning_so.core.matrices.matrices import Work
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.linalg.precision import Rounded, Uncast, Unrounded

#: By `Ways.rotation`; where torch says, nothing is said here.
CONTEXTS: dict[str | None, Callable[[], AbstractContextManager]] = {"torch": Uncast, "tf32": Rounded, "fp32": Unrounded}


def turning(cohort: Cohort, way: str | None, *, leave: bool) -> Work:
    """What rotates the gradients of a cohort into its bases, or the base's updates out of them.

    Args:
        cohort: The cohort, which rotates.
        way: See `contract.ways.Ways.rotation`.
        leave: Out of the bases: of updates, which are polished before if the method says so.

    Returns:
        The work.
    """
    stack, context = cohort.stack, CONTEXTS[way]
    polisher = stack.polisher if leave else None

    def turn(X: Tensor) -> Tensor:
        if polisher is not None:
            X = polished(X, polisher.polar_factor(stack.stats, X.dtype))
        with context():
            return stack.turning.turn(stack.stats, X, cohort.rows, leave=leave)

    return partial(map, turn)
