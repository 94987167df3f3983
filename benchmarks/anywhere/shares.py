"""How a method stands beside its base on the suite: ratios of final losses by cell, and what share of them is equal.

- A method is compared with its base: AdamW, or SGD for those on SGD. SGD itself is compared with AdamW.
- A cell is a problem at a rate (the base's tuned rate times .3, 1 or 3). Its figure is the ratio of two medians over
  the seeds that both have: the method's final loss over its base's, at the same steps.
- "Equal" is a ratio of at most 1.01, or of 1 and the base's own spread on that problem where that is more: the
  deviation over the mean of its final losses at its tuned rate.
- At equal seconds a method at the tuned rate is compared with what its base reaches in the CPU seconds that the method
  took. The base was run for 1, 1.5, 2 and 3 times the steps, each with its own schedule; between them its loss is
  linear in logarithms, and beyond the longest it is the longest's.
- A run whose loss is not finite, or that failed, is infinitely worse than one that is; two such are equal.
- A method that refuses a model by name, since nothing of it is a matrix that it works on, has no cell there.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean, median, stdev
from typing import Any, NamedTuple

from benchmarks.anywhere.cell import Cell
from benchmarks.anywhere.problems import base
from benchmarks.training.table import finite

#: What is called equal at the least.
EQUAL = 0.01

Place = tuple[str, str, float, float]


class Runs(NamedTuple):
    """Lines by problem, method, rate and stretch, and by seed."""

    by_place: Mapping[Place, Mapping[int, dict[str, Any]]]

    @property
    def problems(self) -> list[str]:
        """Names, in the order of the file."""
        return list(dict.fromkeys(place[0] for place in self.by_place))

    @property
    def methods(self) -> list[str]:
        """Names, in the order of the file."""
        return list(dict.fromkeys(place[1] for place in self.by_place))

    @property
    def rates(self) -> list[float]:
        """Over the tuned one, in order."""
        return sorted({place[2] for place in self.by_place})

    def at(self, problem: str, method: str, times: float = 1.0, stretch: float = 1.0) -> Mapping[int, dict[str, Any]]:
        """Lines by seed, none where there was no run."""
        return self.by_place.get((problem, method, times, stretch), {})


def grouped(lines: Mapping[Cell, dict[str, Any]]) -> Runs:
    """The lines of a file."""
    found: dict[Place, dict[int, dict[str, Any]]] = {}
    for cell, line in ((cell, line) for cell, line in lines.items() if "refused" not in line):
        found.setdefault((cell.problem, cell.method, cell.times, cell.stretch), {})[cell.seed] = line
    return Runs(found)


def against(method: str) -> str:
    """What a method is compared with."""
    return "adamw" if method == "sgd" else base(method)


def losses(lines: Mapping[int, dict[str, Any]], seeds: Sequence[int] | None = None) -> list[float]:
    """Final losses of some seeds, or of all."""
    return [finite(line["final_loss"]) for seed, line in lines.items() if seeds is None or seed in seeds]


def over(loss: float, other: float) -> float:
    """A ratio, in which two that are not finite are equal."""
    if math.isinf(other):
        return 1.0 if math.isinf(loss) else 0.0
    return loss / other


def ratio(runs: Runs, problem: str, method: str, times: float, of: float | None = None) -> float | None:
    """A method's final loss over its base's at the same rate, or at another; none where either was not run."""
    ours = runs.at(problem, method, times)
    theirs = runs.at(problem, against(method), times if of is None else of)
    seeds = sorted(ours.keys() & theirs.keys())
    return over(median(losses(ours, seeds)), median(losses(theirs, seeds))) if seeds else None


def reached(runs: Runs, problem: str, method: str, seconds: float) -> float | None:
    """What a base reaches in so many CPU seconds; none where it was not run for longer."""
    found = sorted(
        (median(line["cpu_seconds"] for line in lines.values() if "cpu_seconds" in line), median(losses(lines)))
        for (name, of, times, _), lines in runs.by_place.items()
        if (name, of, times) == (problem, method, 1.0) and any("cpu_seconds" in line for line in lines.values())
    )
    if len(found) < 2:
        return None
    for (before, high), (after, low) in pairwise(found):
        if seconds <= after and math.isfinite(high) and math.isfinite(low):
            share = max(0.0, math.log(seconds / before) / math.log(after / before))
            return high * (low / high) ** share
    return found[-1][1]


def timed(runs: Runs, problem: str, method: str) -> float | None:
    """A method's final loss over what its base reaches in the same seconds."""
    ours = runs.at(problem, method)
    seconds = [line["cpu_seconds"] for line in ours.values() if "cpu_seconds" in line]
    if not ours:
        return None
    theirs = reached(runs, problem, against(method), median(seconds) if seconds else math.inf)
    return None if theirs is None else over(median(losses(ours)), theirs)


def allowed(runs: Runs, problem: str, method: str) -> float:
    """The ratio up to which a method is called its base's equal."""
    found = [loss for loss in losses(runs.at(problem, against(method))) if math.isfinite(loss)]
    return 1 + max(EQUAL, stdev(found) / mean(found) if len(found) > 1 else 0.0)


class Summary(NamedTuple):
    """Ratios of a method by cell, (problem, rate): to its base at the same rate, at its tuned rate, and by time."""

    same: Mapping[tuple[str, float], float]
    tuned: Mapping[tuple[str, float], float]
    timed: Mapping[tuple[str, float], float]


def summary(runs: Runs, method: str) -> Summary:
    """All there is of a method."""
    cells = [(problem, times) for problem in runs.problems for times in runs.rates]
    same = {cell: ratio(runs, cell[0], method, cell[1]) for cell in cells}
    tuned = {cell: ratio(runs, cell[0], method, cell[1], 1.0) for cell in cells}
    by_time = {(problem, 1.0): timed(runs, problem, method) for problem in runs.problems}
    return Summary(*({at: one for at, one in part.items() if one is not None} for part in (same, tuned, by_time)))


def share(runs: Runs, method: str, ratios: Mapping[tuple[str, float], float]) -> float | None:
    """Of the cells, those in which a method is its base's equal."""
    held = [one <= allowed(runs, problem, method) for (problem, _), one in ratios.items()]
    return mean(held) if held else None
