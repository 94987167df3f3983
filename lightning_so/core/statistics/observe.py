"""Fold what a step has observed: rows of layers, or gradients."""

from collections.abc import Callable, Iterable

from torch import Tensor

from lightning_so.core.matrices.matrices import Matrices
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.core.stacks.roster import Roster
from lightning_so.core.statistics.recorder import Recorder
from lightning_so.core.statistics.windows import Windows
from lightning_so.linalg.precision import FullPrecision


def fold_rows(
    recorders: Iterable[Recorder], windows: Windows, roster: Roster, step: int, tell: Callable[[object], None]
) -> None:
    """Fold the rows that methods have observed, of the blocks whose gradient is there.

    Args:
        recorders: One a method that observes rows.
        windows: Where rows are summed over ranks.
        roster: Who has a gradient.
        step: The step.
        tell: Gets what the first loss has told.
    """
    for recorder in recorders:
        if news := recorder.labels.news():
            tell(news)
        windows.fold(recorder.places(roster.lives), step, recorder.factor())
        recorder.spend(roster.lives)


@FullPrecision()
def fold_gradients(cohorts: Iterable[Cohort], matrices: Matrices) -> None:
    """Show gradients to the methods that observe them.

    Args:
        cohorts: The cohorts of the step.
        matrices: Where gradients are whole.
    """
    shown = [cohort for cohort in cohorts if cohort.stack.observer]
    matrices.show([(cohort, matrices.gradients(cohort)) for cohort in shown], _show)


def _show(cohort: Cohort, gradients: Tensor) -> None:
    cohort.stack.observing.observe(cohort.stack.stats, gradients, cohort.rows)
