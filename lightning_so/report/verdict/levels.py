"""Levels of a noisy series: medians, which single outliers do not move."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

#: Of a normal distribution, the standard deviation over the median distance from the median.
NORMAL = 1.4826
#: What drifts by itself stays within so many spreads of the window before it.
DRIFT = 2.0


def spread(values: Sequence[float]) -> float:
    """Standard deviation of what is normal among some values, whatever else is there.

    Args:
        values: At least one.

    Returns:
        1.4826 times the median distance from the median.
    """
    middle = median(values)
    return NORMAL * median(abs(value - middle) for value in values)


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Where a series begins and where it ends: medians of its first hundredth, three to ten, and its last twentieth.

    Args:
        values: At least three.

    Returns:
        Both.
    """
    return median(values[: max(3, min(10, len(values) // 100))]), median(values[-max(3, len(values) // 20) :])


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Medians of windows around each place, cut at the ends.

    Args:
        values: The series.
        width: Of a window.

    Returns:
        As many.
    """
    half = width // 2
    return [median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def steps_apart(values: Sequence[float], width: int) -> list[float]:
    """Standard deviation of a series' noise around each place, by what follow each other: drift is not in it.

    Args:
        values: At least two.
        width: Of the window.

    Returns:
        As many.
    """
    # Of a normal distribution, that of a value over the median of |difference of two|.
    steps = [abs(after - before) / (2**0.5 / NORMAL) for before, after in pairwise(values)]
    return smooth([steps[0], *steps], width)


@dataclass(frozen=True)
class Excursion:
    """A part of a series that stands clearly above what was before.

    Attributes:
        first: Its first place.
        last: Its last.
        before: The level that it left.
        top: The median of the part.
        back: Whether the series came back.
    """

    first: int
    last: int
    before: float
    top: float
    back: bool


def apart(
    values: Sequence[float], window: int, far: float, times: float, noise: Sequence[float] | None = None
) -> list[Excursion]:
    """Where a series leaves its level upwards.

    The level before a place is the median of the window before it, and nothing of an excursion is part of it: one that
    lasts is no new level. It begins where the value is above the level by `far` spreads of the window and by `times`
    the level, and ends half way back to where it began.

    Args:
        values: The series.
        window: Places that are a level.
        far: In spreads of the window.
        times: In levels.
        noise: The spread at each place, where a window has too few numbers that are not alike; that of the window then
            tells how far the series drifts.

    Returns:
        The excursions, in order.
    """
    found, calm, i = list[Excursion](), list(values[:window]), window
    while i < len(values):
        recent = calm[-window:]
        level = median(recent)
        usual = spread(recent)
        limit = level + max(far * noise[i] + DRIFT * usual if noise else far * usual, times * abs(level))
        if values[i] <= limit:
            calm.append(values[i])
            i += 1
            continue
        end = i
        while end + 1 < len(values) and values[end + 1] > (level + limit) / 2:
            end += 1
        part = values[i : end + 1]
        found.append(Excursion(i, end, level, median(part), end + 1 < len(values)))
        i = end + 1
    return found
