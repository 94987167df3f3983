"""The smallest piece that can be solved on its own."""

import math
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """The smallest piece that can be solved on its own.

    Attributes:
        stack: Index of its stack.
        row: Index of its block in the stack.
        side: 0 for the rows' factor, 1 for the columns'.
        tile: Index of the tile on that side.
        cost: Modelled cost of one solve, in multiply-adds of a matrix product.
        shape: Shape of the solved value.
        columns: How many columns a solve permutes; 0 for none.
        kind: What else must be equal of units that are solved in one call: method, dtype and `shape` are.
        together: Whether all units of its block have one owner, where the block's factors are.
        period: Largest interval between two solves.
        staggered: Whether it has a slot of its own; otherwise it is solved with all others of its kind.
    """

    stack: int
    row: int
    side: int
    tile: int
    cost: float
    shape: tuple[int, ...] = (0, 0)
    columns: int = 0
    kind: Hashable = None
    together: bool = False
    period: int = 1
    staggered: bool = True

    def every(self, step: int) -> int:
        """The interval at an age of `step` steps."""
        return interval(step, self.period)

    @property
    def final(self) -> int:
        """The largest interval."""
        return interval(10 * self.period, self.period)


def interval(step: int, period: int) -> int:
    """Age-proportional interval: min(period, max(2, step / 10)), rounded down to a power of two (1 if period is 1).

    A basis moves fast early and slowly late; powers of two so that units are repacked only when it changes.

    Args:
        step: Steps trained.
        period: The largest interval.

    Returns:
        Steps between two solves of one unit.
    """
    wanted = min(period, max(2.0, step / 10))
    return 2 ** int(math.log2(wanted)) if wanted >= 1 else 1
