"""What was measured, in few numbers: medians of a round, which outliers of a loaded machine do not move."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from lightning_so.core.overhead.meter import Lap


@dataclass(frozen=True)
class Timings:
    """Seconds of the parts of a step; those of rows are of a step that watches all blocks.

    Attributes:
        own: The training's own step.
        steady: What is ours at every step, whatever is bought.
        hooks: Rows taken in by hooks on layers.
        folding: What else is done for rows.
        thinning: Of how many rows one was taken then.
        solves: One solve of each kind of unit, with what swapping it in costs; not a number where none was seen.
    """

    own: float
    steady: float
    hooks: float
    folding: float
    thinning: int
    solves: tuple[float, ...]

    def rows(self, thinning: int) -> float:
        """Seconds that rows of all blocks cost where one of `thinning` is taken."""
        return self.folding + self.hooks * self.thinning / thinning

    def vector(self) -> list[float]:
        """All numbers, always equally many for the same units."""
        return [self.own, self.steady, self.hooks, self.folding, float(self.thinning), *self.solves]

    @classmethod
    def of_vector(cls, numbers: Sequence[float]) -> "Timings":
        """What `vector` gave."""
        own, steady, hooks, folding, thinning, *solves = numbers
        return cls(own, steady, hooks, folding, round(thinning), tuple(solves))

    def completed(self, before: "Timings | None", modelled: Sequence[float]) -> "Timings":
        """Have numbers for kinds of which no solve was seen: those of before, else by the model, at the others' pace.

        Args:
            before: Of the last round.
            modelled: Cost of each kind by the model.

        Returns:
            Timings without gaps, unless no solve of any kind was seen.
        """
        known = self.solves if before is None else _either(self.solves, before.solves)
        paces = [s / cost for s, cost in zip(known, modelled, strict=True) if not math.isnan(s) and cost > 0]
        pace = median(paces) if paces else math.nan
        solves = [pace * cost if math.isnan(s) else s for s, cost in zip(known, modelled, strict=True)]
        return replace(self, solves=tuple(solves))


def _either(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [b if math.isnan(a) else a for a, b in zip(first, second, strict=True)]


def timings(laps: Sequence[Lap], kinds: int, thinning: int) -> Timings:
    """The medians of some steps.

    Args:
        laps: The steps; one at least.
        kinds: How many kinds of units there are.
        thinning: Of how many rows one was taken meanwhile.

    Returns:
        The timings.
    """
    watched = sum(lap.watched for lap in laps)
    share = 1 / watched if watched else 0.0
    # What a solve costs beyond the call that finds it: the rest of its stage, in proportion.
    stages = [lap.solving / sum(s for _, s in lap.kinds.values()) for lap in laps if _timed(lap)]
    rest = median(stages) if stages else 1.0
    solves = []
    for kind in range(kinds):
        seen = [seconds / count for lap in laps for count, seconds in [lap.kinds.get(kind, (0, 0.0))] if count]
        solves.append(rest * median(seen) if seen else math.nan)
    return Timings(
        median(lap.own for lap in laps),
        median(lap.steady for lap in laps),
        sum(lap.hooks for lap in laps) * share,
        sum(lap.folding for lap in laps) * share,
        thinning,
        tuple(solves),
    )


def _timed(lap: Lap) -> bool:
    return sum(seconds for _, seconds in lap.kinds.values()) > 0


def unsteady(before: Timings, now: Timings, most: float) -> float | None:
    """By which share the training's own step differs between two rounds, where that is more than `most`."""
    difference = abs(now.own - before.own) / max(min(now.own, before.own), 1e-12)
    return difference if difference > most else None
