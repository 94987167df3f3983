"""The staggered schedule: which unit is solved at which step, by whom.

A pure function of (step, units, ranks): every rank computes the same answer without communication.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from lightning_so.core.errors import check_range


@dataclass(frozen=True)
class Unit:
    """The smallest piece that can be solved on its own.

    Attributes:
        stack: Index of its stack.
        row: Index of its block in the stack.
        side: 0 for the rows' factor, 1 for the columns'.
        tile: Index of the tile on that side.
        cost: Modelled cost of one solve, in multiply-adds of a matrix product.
    """

    stack: int
    row: int
    side: int
    tile: int
    cost: float


def pack(costs: list[float], slots: int, ranks: int) -> list[tuple[int, int]]:
    """Pack units over (slot x rank) by cost: greedy longest first, ties by index; deterministic.

    The greedy bound holds: the largest load is at most the mean load plus the largest cost.

    Args:
        costs: Cost of each unit.
        slots: Steps to spread over.
        ranks: Owners to spread over.

    Returns:
        (slot, rank) of each unit.
    """
    loads = [0.0] * (slots * ranks)
    place = [(0, 0)] * len(costs)
    for unit in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        cell = min(range(len(loads)), key=lambda c: (loads[c], c))
        loads[cell] += costs[unit]
        # Neighbouring cells are different slots: equal loads spread over steps first, then over ranks.
        place[unit] = (cell % slots, cell // slots)
    return place


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


@dataclass
class Schedule:
    """When each unit is due; advanced one step at a time by `due`.

    Attributes:
        units: The units, in a fixed order.
        period: Largest interval.
        ranks: World size.
        staggered: Spread units over the interval; otherwise solve all on one step (the textbook burst).
        last: Step of each unit's last solve (0 = never).
        next: Step at which each unit is due.
        solved: Good solves of each unit so far.
        every: The interval in force.
        slot: The slot of each unit in the interval.
        owner: The rank that solves each unit.
    """

    units: list[Unit]
    period: int
    ranks: int = 1
    staggered: bool = True
    last: list[int] = field(default_factory=list)
    next: list[int] = field(default_factory=list)
    solved: list[int] = field(default_factory=list)
    every: int = 0
    slot: list[int] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Fill the lists of a new schedule."""
        if not self.last:
            self.last, self.next = [0] * len(self.units), [1] * len(self.units)
            self.solved = [0] * len(self.units)

    def due(self, step: int, budget: float) -> list[int]:
        """The units to solve at this step, oldest due first; what does not fit the budget slips to the next step.

        At least one due unit a rank is always solved, so that nothing slips for ever.

        Args:
            step: The step, counted from 1.
            budget: Cost that solves may use on each rank at this step; infinite for no bound.

        Returns:
            Indices into `units`.
        """
        self._repack(step)
        room, chosen = [budget] * self.ranks, []
        started = [False] * self.ranks
        for unit in sorted(
            (u for u in range(len(self.units)) if self.next[u] <= step), key=lambda u: (self.next[u], u)
        ):
            rank, cost = self.owner[unit], self.units[unit].cost
            if started[rank] and cost > room[rank]:
                continue
            started[rank], room[rank] = True, room[rank] - cost
            chosen.append(unit)
        for unit in chosen:
            self.last[unit] = step
            self.next[unit] = self._following(step + max(1, self.every // 2), self.slot[unit])
        return chosen

    def _following(self, step: int, slot: int) -> int:
        """The first step from `step` on that belongs to the slot: after a slip a unit returns to its own."""
        return step + (slot - step) % self.every

    def _repack(self, step: int) -> None:
        every = interval(step, self.period)
        if every == self.every:
            return
        self.place(every)
        # A unit that is overdue keeps its place in the queue; the others move to their new slot.
        self.next = [
            due if due < step else self._following(step, slot) for due, slot in zip(self.next, self.slot, strict=True)
        ]

    def place(self, every: int) -> None:
        """Pack the units for an interval, without moving what is due."""
        self.every = every
        cells = pack([unit.cost for unit in self.units], max(every, 1) if self.staggered else 1, self.ranks)
        self.slot, self.owner = [slot for slot, _ in cells], [rank for _, rank in cells]

    def age(self, step: int) -> int:
        """Steps since the oldest unit was solved; 0 without units."""
        return max((step - last for last in self.last), default=0)


class Spread(ABC):
    """How solves are spread over the interval: `Staggered` or `Synchronous`."""

    @property
    @abstractmethod
    def staggered(self) -> bool:
        """Whether units get slots of their own."""

    @abstractmethod
    def budget(self, peak: float, busy: float) -> float:
        """What solves may cost at a step, in the units of the cost model.

        Args:
            peak: The optimizer work of the dearest phase without solves (all cold or all warm), or of the steady step
                with its share of solves, whichever is more: a level that steps reach anyway.
            busy: The work of this step without solves.
        """


@dataclass(frozen=True)
class Staggered(Spread):
    """Spread the solves over the interval and bound the work of every step (the default).

    Attributes:
        headroom: Largest modelled optimizer work of a step over that of the dearest phase; solves beyond it slip.
    """

    headroom: float = 1.2

    def __post_init__(self) -> None:
        """Check the argument."""
        check_range("Staggered", "headroom", self.headroom, 1.01, 10.0)

    @property
    def staggered(self) -> bool:
        """Each unit has a slot."""
        return True

    def budget(self, peak: float, busy: float) -> float:
        """See `Spread.budget`: what is left of the headroom."""
        return max(0.0, self.headroom * peak - busy)


@dataclass(frozen=True)
class Synchronous(Spread):
    """Solve every unit on the same step, once an interval: the textbook burst, for comparison."""

    @property
    def staggered(self) -> bool:
        """All units share one slot."""
        return False

    def budget(self, peak: float, busy: float) -> float:
        """See `Spread.budget`: unbounded."""
        return math.inf
