"""A line that goes down, and ever steeper: how far to follow it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

#: How much farther every next point is, and how often at most.
GROWTH, GROWTHS = 4.0, 10
#: A loss that rises by this share is the same: it was computed in float32.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Point:
    """A point of the line.

    Attributes:
        distance: t, from where the line begins.
        loss: f(t).
        slope: f'(t).
    """

    distance: float
    loss: float
    slope: float

    @property
    def finite(self) -> bool:
        """Whether it can be computed with."""
        return math.isfinite(self.loss) and math.isfinite(self.slope)

    def above(self, other: "Point") -> bool:
        """Whether its loss is higher than another's."""
        return self.loss > other.loss + ROUNDING * abs(other.loss)


def downhill(at: Callable[[float], Point], here: Point, first: float) -> Point | None:
    """Follow a line that bends down until it does no more.

    Points are ever farther while the loss falls and the line gets steeper: after the inflection the way down is an
    optimizer's. Beyond a minimum it is the one of the cubic through the last two points, if the loss is lower there.

    Source: the cubic: Nocedal and Wright 2006, equation 3.59.

    Args:
        at: Computes a point, given its distance.
        here: Where the line begins; its slope is not positive.
        first: The distance of the first point.

    Returns:
        The point to go to, one that was computed: `here` where the first is higher or the line does not bend down; None
        where a number was not finite.

    Example:
        >>> found = downhill(lambda t: Point(t, t**4 / 4 - t**2 / 2, t**3 - t), Point(0.0, 0.0, 0.0), 1e-3)
        >>> round(found.distance, 1)
        1.0
    """
    reached = at(first)
    if not (here.finite and reached.finite):
        return None
    if reached.above(here) or not reached.slope < here.slope:
        return here
    for _ in range(GROWTHS):
        beyond = at(GROWTH * reached.distance)
        if not beyond.finite:
            return None
        if beyond.slope > 0:
            between = at(_cubic(reached, beyond))
            lower = [point for point in (between, beyond) if point.loss < reached.loss]
            return min(lower, key=lambda point: point.loss, default=reached) if between.finite else None
        if beyond.above(reached):
            return reached
        if beyond.slope >= reached.slope:
            return beyond
        reached = beyond
    return reached


def _cubic(a: Point, b: Point) -> float:
    """Where the cubic through two points, between which is a minimum, has it."""
    width = b.distance - a.distance
    z = 3 * (a.loss - b.loss) / width + a.slope + b.slope
    root = math.sqrt(z * z - a.slope * b.slope)
    return b.distance - width * (b.slope + root - z) / (b.slope - a.slope + 2 * root)
