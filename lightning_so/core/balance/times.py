"""Seconds of this rank's solves, by kind and number: what can be compared between ranks."""

from collections.abc import Callable
from math import nan
from statistics import fmean
from typing import Any

from lightning_so.core.overhead.clock import Clock
from lightning_so.core.schedule.schedule import Rung

#: Sizes of calls that are told apart, as a batch is faster than its units alone: 1, 2, up to 4, up to 8, more.
SIZES = 5
#: Calls of a kind and size of which a mean says something.
ENOUGH = 3


class SolveTimes:
    """Notes calls without waiting for the device.

    Attributes:
        clock: Of time that passes: a rank that is throttled takes longer by it, and not by the time of its process.
    """

    def __init__(self, clock: Clock, kinds: list[int]) -> None:
        """Nothing is noted yet.

        Args:
            clock: See the attribute.
            kinds: The kind of each unit, see `Units.kinds`.
        """
        self.clock, self._kinds, self._met = clock, kinds, set[int]()
        self._calls: list[tuple[int, int, Any, Any]] = []

    def around(self, solve: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose calls are noted.

        Not the first of a kind, which allocates, nor those that solve afresh what has failed.

        Args:
            solve: Solves units of one kind.

        Returns:
            The function.
        """

        def timed(units: Any, numbers: list[int], rung: Rung) -> Any:
            begin = self.clock.moment()
            found = solve(units, numbers, rung)
            column = self._kinds[numbers[0]] * SIZES + min((len(numbers) - 1).bit_length(), SIZES - 1)
            if column in self._met and rung is not Rung.AFRESH:
                self._calls.append((column, len(numbers), begin, self.clock.moment()))
            self._met.add(column)
            return found

        return timed

    @property
    def columns(self) -> int:
        """Of how many kinds and sizes there may be means."""
        return (max(self._kinds, default=-1) + 1) * SIZES

    def means(self) -> list[float]:
        """Seconds of one unit since the last time, by kind and size; not a number where few calls were seen."""
        seen: list[list[float]] = [[] for _ in range(self.columns)]
        for column, count, begin, end in self._calls:
            seconds = self.clock.seconds(begin, end)
            if seconds is not None:
                seen[column].append(seconds / count)
        self._calls.clear()
        # No medians: a quota of time leaves most calls alone and stops a few for long.
        return [fmean(of) if len(of) >= ENOUGH else nan for of in seen]
