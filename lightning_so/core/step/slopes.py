"""The slopes along the updates of bent cohorts, at both ends of a step now and then: see `actions.stretch`.

At most of every second, so that a state that is written between two steps rarely has a slope waiting.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_so.actions.stretch import Slopes, bounds, learned, sampled, stretched
from lightning_so.contract.method import Action
from lightning_so.core.matrices.matrices import Matrices, alike
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.core.stacks.stack import Stack

#: Cohorts that bend, and what is known of the slopes of their stacks.
Known = tuple[Cohort, Slopes]


#: First slopes are taken at every second of the first steps, later at every eighth.
YOUNG, EVERY = 64, 8
#: Numbers of a block that ranks sum at the second slope.
NUMBERS = 4


def due(step: int) -> bool:
    """Whether first slopes are taken at a step: at odd ones."""
    return step % (2 if step <= YOUNG else EVERY) == 1


def end(cohorts: Iterable[Cohort], stacks: Iterable[Stack], matrices: Matrices) -> None:
    """Take the second slope along the last step, before weights are saved: by gradients as the base is to see them.

    Args:
        cohorts: Those of this step.
        stacks: All of them; none waits afterwards.
        matrices: Where they are.
    """
    bent = _known(cohort for cohort in cohorts if cohort.action is Action.BEND)
    for some in _alike(item for item in bent if item[1].open):
        ends = torch.cat([matrices.products(cohort, *_gradients_and_moves(cohort, matrices)) for cohort, _ in some])
        opened = torch.cat([_of(cohort, slopes.opened) for cohort, slopes in some])
        totals = matrices.total(torch.cat([opened, ends[:, None]], 1))
        sample = sampled(totals[:, :3], totals[:, 3])
        means = learned(torch.cat([_of(cohort, slopes.means) for cohort, slopes in some]), sample)
        bound = bounds(means, sample, torch.cat([_of(cohort, slopes.times) for cohort, slopes in some]))
        found = zip(means.split(_sizes(some)), bound.split(_sizes(some)), strict=True)
        for (cohort, slopes), parts in zip(some, found, strict=True):
            slopes.means[_rows(cohort)], slopes.bounds[_rows(cohort)] = parts
    for stack in stacks:
        if stack.slopes is not None:
            stack.slopes.drop()


def lengthen(cohorts: Iterable[Cohort], lengths: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The lengths of bent updates.

    Args:
        cohorts: Those that bend.
        lengths: Of each, by `id`, the lengths of the base's updates, (k,).

    Returns:
        The same, longer where that is known to be better.
    """
    found = dict(lengths)
    for some in _alike(item for item in _known(cohorts) if item[1].used):
        of_base = torch.cat([lengths[id(cohort)] for cohort, _ in some])
        times = stretched(torch.cat([_of(cohort, slopes.bounds) for cohort, slopes in some]), of_base)
        longer = (times * of_base).split(_sizes(some))
        for (cohort, slopes), part, length in zip(some, times.split(_sizes(some)), longer, strict=True):
            found[id(cohort)] = length
            if cohort.rows is None:
                slopes.times = part
            else:
                slopes.times[cohort.rows] = part
    return found


def promised(cohorts: Iterable[Cohort], lengths: Mapping[int, Tensor], matrices: Matrices) -> dict[int, Tensor]:
    """This rank's part of <g, u> / |u|, of the base's updates in the hidden parameters, by `id` of every cohort."""
    found = dict[int, Tensor]()
    for cohort, _ in _known(cohorts):
        gradients = matrices.fill(cohort, matrices.gradients(cohort), 0)
        products = matrices.products(cohort, gradients, matrices.fill(cohort, matrices.weights(cohort), 1))
        found[id(cohort)] = products / lengths[id(cohort)].clamp_min(torch.finfo(products.dtype).tiny)
    return found


def begin(cohort: Cohort, of_base: Tensor, matrices: Matrices) -> None:
    """Take the first slope along the step that was made.

    Args:
        cohort: A cohort that was bent; its weights are written.
        of_base: See `promised`.
        matrices: Where they are.
    """
    slopes = cohort.stack.slopes
    assert slopes is not None
    gradients, moves = _gradients_and_moves(cohort, matrices)
    sums = [matrices.products(cohort, gradients, moves), matrices.products(cohort, moves, moves), of_base]
    slopes.opened[_rows(cohort)] = torch.stack(sums, 1)
    slopes.open = slopes.used = True


def longest(cohorts: Iterable[Cohort]) -> float:
    """How many times the base's length the longest bent update of the last step had, at least 1: a host read."""
    bent = _known(cohort for cohort in cohorts if cohort.action is Action.BEND)
    return max((float(_of(cohort, slopes.times).max()) for cohort, slopes in bent), default=1.0)


def _gradients_and_moves(cohort: Cohort, matrices: Matrices) -> tuple[Tensor, Tensor]:
    """Buffers of the gradients of a cohort, and of what its last step has made of its weights."""
    gradients = matrices.fill(cohort, matrices.gradients(cohort), 0)
    return gradients, matrices.fill(cohort, matrices.weights(cohort), 1).sub_(matrices.saved(cohort))


def _known(cohorts: Iterable[Cohort]) -> Iterator[Known]:
    return ((cohort, cohort.stack.slopes) for cohort in cohorts if cohort.stack.slopes is not None)


def _alike(found: Iterable[Known]) -> Iterator[list[Known]]:
    """Those whose numbers fit into one tensor."""
    return alike(found, lambda item: (item[0].stack.dtype, item[0].stack.device))


def _sizes(found: Sequence[Known]) -> list[int]:
    return [len(cohort.blocks) for cohort, _ in found]


def _of(cohort: Cohort, numbers: Tensor) -> Tensor:
    """What a cohort has of numbers by block."""
    return numbers if cohort.rows is None else numbers[cohort.rows]


def _rows(cohort: Cohort) -> list[int] | slice:
    return slice(None) if cohort.rows is None else cohort.rows
