"""The directions of bent cohorts, stack by stack; or of several stacks in one call, where they are polar factors."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_so.actions.bend import bent
from lightning_so.core.matrices.matrices import Matrices, Work, alike
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.linalg.padding import Frames, joined
from lightning_so.linalg.polar import PolarFactor
from lightning_so.linalg.precision import FullPrecision

#: The work space that padded batches share; see `Scratch.flat`.
SLOT = 3


def bending(
    cohorts: Sequence[Cohort], lengths: Mapping[int, Tensor], matrices: Matrices, way: str | None
) -> dict[int, Work]:
    """What turns first moments of cohorts into their updates.

    Args:
        cohorts: Those that bend, in their order.
        lengths: Of each, by `id`, the lengths of the base's updates, (k,).
        matrices: Where they are whole; its work space is used.
        way: See `contract.ways.Ways.padding`.

    Returns:
        The work of each, by `id`; the same for those that are computed in one call.
    """
    works: dict[int, Work] = {id(cohort): partial(map, _alone(cohort, lengths[id(cohort)])) for cohort in cohorts}
    for factor, some in _together(cohorts) if way == "padded" else ():
        work = _padded(factor, some, torch.cat([lengths[id(cohort)] for cohort in some]), matrices)
        works.update((id(cohort), work) for cohort in some)
    return works


def _alone(cohort: Cohort, lengths: Tensor) -> Callable[[Tensor], Tensor]:
    stack = cohort.stack

    @FullPrecision()
    def bend(X: Tensor) -> Tensor:
        return bent(stack.method.direction(stack.stats, X, cohort.rows), lengths)

    return bend


def _padded(factor: PolarFactor, cohorts: Sequence[Cohort], lengths: Tensor, matrices: Matrices) -> Work:
    frames = Frames(tuple(map(_size, cohorts)))

    @FullPrecision()
    def bend(moments: Iterator[Tensor]) -> list[Tensor]:
        room = matrices.scratch.flat(cohorts[0].stack, math.prod(frames.shape), SLOT).view(frames.shape)
        return frames.views(bent(factor(frames.fill(room, moments)), lengths))

    return bend


def _together(cohorts: Sequence[Cohort]) -> Iterator[tuple[PolarFactor, list[Cohort]]]:
    """Cohorts of several stacks whose polar factors are to be found in one call, and how."""
    factors = {
        id(cohort): cohort.stack.orthogonaliser.polar_factor(cohort.stack.stats, cohort.stack.dtype)
        for cohort in cohorts
        if cohort.stack.orthogonaliser is not None and cohort.stack.here
    }
    here = [cohort for cohort in cohorts if id(cohort) in factors]
    # Apart from those that every rank works on: of which others are in a batch is felt in the last bits.
    for some in alike(
        here, lambda cohort: (factors[id(cohort)], cohort.stack.dtype, cohort.stack.device, cohort.stack.owner)
    ):
        factor = factors[id(some[0])]
        for group in joined(tuple(map(_size, some)), factor, some[0].stack.dtype):
            if len(group) > 1:
                yield factor, [some[number] for number in group]


def _size(cohort: Cohort) -> tuple[int, int, int]:
    """Number, rows and columns of its matrices."""
    return len(cohort.blocks), *cohort.stack.shape
