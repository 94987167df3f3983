"""What happens to cohorts before the base's step: precondition, or hide (and rotate)."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_so.actions import hide
from lightning_so.actions.precondition import Clip, Footing
from lightning_so.contract.method import Action
from lightning_so.core.host import Host
from lightning_so.core.matrices.matrices import Matrices, MatrixWork, alike
from lightning_so.core.report import Report
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.core.stacks.stack import Stack, methods_of
from lightning_so.core.step import lending, rowwise, slopes
from lightning_so.core.step.progress import Progress
from lightning_so.core.step.rowwise import Kept
from lightning_so.core.step.turning import turning
from lightning_so.linalg.precision import FullPrecision, Uncast


@Uncast()
def begin(
    progress: Progress,
    cohorts: Sequence[Cohort],
    stacks: Sequence[Stack],
    host: Host,
    matrices: Matrices,
    kept: Kept,
    rotation: str | None,
) -> list[Cohort]:
    """Precondition the gradients of cohorts, or hide their parameters (and rotate gradients), before the base steps.

    Args:
        progress: Its `hidden` gets every cohort whose parameters are hidden.
        cohorts: All of the step.
        stacks: Those of the training.
        host: The training.
        matrices: Where they are whole.
        kept: Rows of layers that made gradients.
        rotation: How rotations are computed, see `Ways`.

    Returns:
        The cohorts whose action is not BASE.
    """
    acting = [cohort for cohort in cohorts if cohort.action is not Action.BASE]
    waiting = [cohort for cohort in cohorts if _waits(cohort, host)]
    clips = _clips([*acting, *waiting])
    lending.lend([*acting, *waiting], host)
    try:
        _hold(acting, waiting, clips, matrices)
        rest = host, matrices, kept, rotation
        matrices.transform(
            [item for cohort in acting for item in _items(cohort, clips[id(cohort.stack.method)], *rest)]
        )
        _apply(clips.values(), matrices)
        slopes.end(cohorts, stacks, matrices)
        for some in alike((c for c in acting if c.action is not Action.PRECONDITION), _memory):
            weights = [weight for cohort in some for weight in matrices.weights(cohort)]
            matrices.take_room(some)
            hide.save(weights, [saved for cohort in some for saved in cohort.saved])
            # Listed before they are hidden: an interrupt between the two lines must not lose a weight.
            progress.hidden += some
            hide.hide(weights)
    finally:
        lent = [cohort for cohort in (*acting, *waiting) if cohort.lent and cohort not in progress.hidden]
        lending.take_back(lent, host)
    return acting


def _items(
    cohort: Cohort, clip: Clip, host: Host, matrices: Matrices, kept: Kept, rotation: str | None
) -> Iterable[MatrixWork]:
    """The work on matrices that a cohort's gradients need before the base's step: none where it is bent."""
    stack, gradients = cohort.stack, matrices.gradients(cohort)
    seen = stack.observer is not None
    source, sink = partial(matrices.fill, cohort, gradients, 0), partial(matrices.write, cohort, gradients)
    if cohort.action is Action.PRECONDITION:
        footing = _footing(cohort)
        over = None if footing is None or footing.pace is None else footing.pace.reciprocal()
        if (products := rowwise.precondition(cohort, kept, over)) is not None:
            if footing is not None:
                clip.add(products, footing)
            return

        @FullPrecision()
        def precondition(X: Tensor) -> Tensor:
            update = stack.method.direction(stack.stats, X, cohort.rows)
            return update if over is None else update * over[:, None, None]

        @FullPrecision()
        def write(update: Tensor) -> None:
            if footing is not None:  # Here, where every rank has its numbers: only owners have been at the work.
                clip.add(matrices.products(cohort, update, source()), footing)
            sink(update)

        yield MatrixWork(cohort, source, partial(map, precondition), write, seen)
        return
    coupled = _couple_decay(cohort, gradients, host, matrices)
    if cohort.action is Action.ROTATE:
        yield MatrixWork(cohort, source, turning(cohort, rotation, leave=False), sink, seen and not coupled)


def _memory(cohort: Cohort) -> tuple[torch.dtype, torch.device, bool]:
    """What must be alike for one call on the tensors of cohorts: dtype, device, and whether they are dense in both."""
    return cohort.stack.hidden.dtype, cohort.stack.device, len(cohort.blocks[0].shapes) == 1


def _clips(cohorts: Iterable[Cohort]) -> dict[int, Clip]:
    """By method, the clip that bounds the step of its preconditioned gradients."""
    return {id(method): Clip(method.step_bound) for method in methods_of(cohort.stack for cohort in cohorts)}


def _apply(clips: Iterable[Clip], matrices: Matrices) -> None:
    """Scale the gradients that clips hold, to sums over ranks, each of which has seen its own numbers alone."""
    bounded = [clip for clip in clips if clip.bounds]
    if bounded:
        device = bounded[0].device
        totals = matrices.total(torch.stack([clip.total(device) for clip in bounded]))
        for clip, total in zip(bounded, totals.unbind(0), strict=True):
            clip.apply(total)


def _hold(acting: Sequence[Cohort], waiting: Sequence[Cohort], clips: Mapping[int, Clip], matrices: Matrices) -> None:
    """Show gradients to the clips of those that are preconditioned, before they are, and of those that wait for it."""
    found = [cohort for cohort in acting if cohort.action is Action.PRECONDITION and cohort.stack.knower is not None]
    bounded = [cohort for cohort in (*found, *waiting) if cohort.stack.method.step_bound is not None]
    known = [(cohort, matrices.gradients(cohort)) for cohort in bounded]
    for (cohort, gradients), squares in zip(known, matrices.squares(known) if known else (), strict=True):
        footing, clip = _footing(cohort), clips[id(cohort.stack.method)]
        assert footing is not None
        clip.hold(gradients, squares, footing)
        if cohort in waiting:
            clip.add(squares.to(footing.rate), footing)


def _waits(cohort: Cohort, host: Host) -> bool:
    """Whether a cohort has SGD's own step until its first solve, at a rate that need not be SGD's."""
    footing = _footing(cohort) if cohort.action is Action.BASE else None
    later = footing is not None and cohort.stack.action(host, cohort.blocks[0], True)
    return footing is not None and footing.pace is None and later is Action.PRECONDITION


def _footing(cohort: Cohort) -> Footing | None:
    """What bounds the steps of a cohort; None where gradients keep a length of their own."""
    stack = cohort.stack
    return None if stack.knower is None else stack.knower.footing(stack.stats, cohort.rows)


def follow_rates(stacks: Iterable[Stack], host: Host) -> None:
    """Tell methods that measure by the base's learning rates what they are at this step."""
    for stack in stacks:
        if stack.knower is not None:
            stack.knower.follow_rates(stack.stats, [host.group(block.group)["lr"] for block in stack.blocks])


def count(acting: Sequence[Cohort], report: Report) -> None:
    """Note how many blocks a step rotates, bends and preconditions.

    Args:
        acting: The cohorts whose action is not BASE.
        report: Gets the counts.
    """
    report.rotated, report.bent, report.preconditioned = (
        sum(len(cohort.blocks) for cohort in acting if cohort.action is action)
        for action in (Action.ROTATE, Action.BEND, Action.PRECONDITION)
    )


def _couple_decay(cohort: Cohort, gradients: list[Tensor], host: Host, matrices: Matrices) -> bool:
    """Add coupled decay to the gradients of groups that have some; whether any has."""
    groups = {number: host.group(number) for number in cohort.of_group}
    coupled = [n for n, group in groups.items() if not host.base.decoupled(group) and group["weight_decay"] != 0]
    weights = matrices.weights(cohort) if coupled else []
    for number in coupled:
        positions = cohort.of_group[number]
        hide.couple_decay([gradients[i] for i in positions], [weights[i] for i in positions], groups[number])
    return bool(coupled)
