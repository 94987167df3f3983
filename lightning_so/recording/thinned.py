"""Keeping a bounded number of things that come without end."""

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Thinned(Generic[T]):
    """Every k-th of what comes, from the first on; k is doubled whenever more than `most` are kept.

    Attributes:
        every: k.
        kept: The things, oldest first.

    Example:
        >>> few = Thinned[int](most=4)
        >>> for number in range(10):
        ...     few.add(number)
        >>> few.kept, few.every
        ([0, 4, 8], 4)
    """

    def __init__(self, most: int) -> None:
        """Nothing has come.

        Args:
            most: How many are kept at most.
        """
        self.every, self.kept = 1, list[T]()
        self._most, self._came = most, 0

    def claim(self) -> bool:
        """Have the next one come.

        Returns:
            Whether it will be kept; then it is to be `put`, now or later.
        """
        wanted = self._came % self.every == 0
        self._came += 1
        return wanted

    def put(self, thing: T) -> None:
        """Keep one that was claimed."""
        self.kept.append(thing)
        if len(self.kept) > self._most:
            self.kept, self.every = self.kept[::2], 2 * self.every

    def add(self, thing: T) -> None:
        """Have the next one come, and keep it if it is to be kept."""
        if self.claim():
            self.put(thing)


class Ends(Generic[T]):
    """The first and the last of what comes, and the number of those between that were let go."""

    def __init__(self, each: int) -> None:
        """Nothing has come.

        Args:
            each: How many are kept of either end.
        """
        self.lost, self._each = 0, each
        self._first, self._last = list[T](), deque[T]()

    def add(self, thing: T) -> None:
        """Have the next one come."""
        if len(self._first) < self._each:
            self._first.append(thing)
            return
        self._last.append(thing)
        if len(self._last) > self._each:
            self._last.popleft()
            self.lost += 1

    def __iter__(self) -> Iterator[T]:
        """All that are kept, oldest first."""
        yield from self._first
        yield from self._last
