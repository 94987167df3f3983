"""The staggered schedule: which unit is solved at which step, by whom.

A pure function of (step, units, ranks): every rank computes the same answer without communication.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from lightning_so.core.errors import check_range

#: How often rows are observed between two solves of a unit, where a method observes rows.
FOLDS = 4


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
        ordered: Whether a solve permutes columns.
    """

    stack: int
    row: int
    side: int
    tile: int
    cost: float
    shape: tuple[int, ...] = (0, 0)
    ordered: bool = True


def pack(costs: list[float], slots: int) -> list[int]:
    """Pack units over slots by cost: greedy longest first, ties by index; deterministic.

    The greedy bound holds: the largest load is at most the mean load plus the largest cost.

    Args:
        costs: Cost of each unit.
        slots: Steps to spread over.

    Returns:
        The slot of each unit.
    """
    loads, place = [0.0] * slots, [0] * len(costs)
    for unit in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        place[unit] = min(range(slots), key=lambda s: (loads[s], s))
        loads[place[unit]] += costs[unit]
    return place


def owners(costs: list[float], slot: list[int], ranks: int) -> list[int]:
    """Give the units of each slot to ranks, longest first: to the least loaded in the slot, then over all slots.

    When a unit is due does not depend on the world size, only who solves it: so any number of ranks gives the weights
    of one process.

    Args:
        costs: Cost of each unit.
        slot: Slot of each unit.
        ranks: World size.

    Returns:
        The owner of each unit.
    """
    here: dict[tuple[int, int], float] = {}
    whole, owner = [0.0] * ranks, [0] * len(costs)
    for unit in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        s = slot[unit]
        rank = min(range(ranks), key=lambda r: (here.get((s, r), 0.0), whole[r], r))
        here[s, rank] = here.get((s, rank), 0.0) + costs[unit]
        whole[rank] += costs[unit]
        owner[unit] = rank
    return owner


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
        origin: Step from which the interval counts: later than 0 after blocks were added or curvature was lost.
        tried: Step of each unit's last solve, good or failed (0 = never).
        last: Step of each unit's last good solve (0 = never).
        next: Step at which each unit is due.
        solved: Good solves of each unit since its block was last cold.
        failed: Failed solves of each unit since its last good one.
        every: The interval in force.
        slot: The slot of each unit in the interval.
        final: The largest interval.
        final_slot: The slot of each unit in it.
        owner: The rank that solves each unit, from the packing over the largest interval; it never changes.
    """

    units: list[Unit]
    period: int
    ranks: int = 1
    staggered: bool = True
    origin: int = field(default=0, init=False)
    tried: list[int] = field(default_factory=list, init=False)
    last: list[int] = field(default_factory=list, init=False)
    next: list[int] = field(default_factory=list, init=False)
    solved: list[int] = field(default_factory=list, init=False)
    failed: list[int] = field(default_factory=list, init=False)
    every: int = field(default=0, init=False)
    slot: list[int] = field(default_factory=list, init=False)
    final: int = field(default=1, init=False)
    final_slot: list[int] = field(default_factory=list, init=False)
    owner: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Fill the lists of a new schedule."""
        count = len(self.units)
        self.tried, self.last, self.solved, self.failed = ([0] * count for _ in range(4))
        self.next = [1] * count
        costs = [unit.cost for unit in self.units]
        self.final = interval(10 * self.period, self.period)
        self.final_slot = pack(costs, self.final if self.staggered else 1)
        self.owner = owners(costs, self.final_slot, self.ranks)

    def due(self, step: int, budget: float, least: int = 1) -> list[int]:
        """The units to solve at this step, oldest due first; what does not fit the budget slips to the next step.

        `least` due units are always solved, so that nothing slips for ever.

        Args:
            step: The step, counted from 1.
            budget: Cost that solves may use at this step, over all ranks; infinite for no bound.
            least: How many are solved whatever they cost.

        Returns:
            Indices into `units`.
        """
        self._repack(step)
        room, chosen = budget, []
        for unit in sorted(
            (u for u in range(len(self.units)) if self.next[u] <= step), key=lambda u: (self.next[u], u)
        ):
            if len(chosen) >= least and self.units[unit].cost > room:
                continue
            room -= self.units[unit].cost
            chosen.append(unit)
        for unit in chosen:
            self.tried[unit] = step
            self.next[unit] = self._following(step + max(1, self.every // 2), self.slot[unit])
        return chosen

    def watched(self, step: int) -> list[int]:
        """The units whose statistics a step adds to: those due by then, and `FOLDS` times an interval all others."""
        every = max(1, self.every // FOLDS)
        return [u for u in range(len(self.units)) if self.next[u] <= step or (step - self.slot[u]) % every == 0]

    def _following(self, step: int, slot: int) -> int:
        """The first step from `step` on that belongs to the slot: after a slip a unit returns to its own."""
        return step + (slot - step) % self.every

    def _repack(self, step: int) -> None:
        every = interval(step - self.origin, self.period)
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
        self.slot = pack([unit.cost for unit in self.units], max(every, 1) if self.staggered else 1)

    def restart(self, step: int) -> None:
        """Count the interval from this step: it starts from its smallest again, and every unit is due within it."""
        self.origin = step
        self.next = [min(due, step + 1) for due in self.next]

    def record(self, unit: int, *, good: bool) -> None:
        """Note how the solve of a due unit ended, at the step at which it was due."""
        self.failed[unit] = 0 if good else self.failed[unit] + 1
        if good:
            self.last[unit] = self.tried[unit]
            self.solved[unit] += 1

    def skip(self, unit: int) -> None:
        """Note that a due unit has nothing new to solve: its last solution is as good as a new one."""
        self.last[unit] = self.tried[unit]

    def ages(self, step: int) -> list[int]:
        """Steps since each unit's last good solve."""
        return [step - last for last in self.last]

    def bound(self) -> int:
        """Steps within which every unit is solved: packing, a new interval, and two rounds of slips of single units."""
        return 2 * self.every + 2 * len(self.units) + 1

    def overdue(self, step: int) -> list[int]:
        """Units that were not tried within the bound; there are none unless the schedule is broken."""
        bound = self.bound()
        return [unit for unit, tried in enumerate(self.tried) if step - max(tried, self.origin) > bound]

    def history(self, unit: int) -> list[int]:
        """What resuming needs of a unit."""
        return [self.tried[unit], self.last[unit], self.next[unit], self.solved[unit], self.failed[unit]]

    def recall(self, unit: int, history: list[int]) -> None:
        """Load what `history` gave."""
        self.tried[unit], self.last[unit], self.next[unit], self.solved[unit], self.failed[unit] = history


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
            peak: The optimizer work of the dearest phase: all cold without solves, or all warm with the fullest slot's
                solves, whichever is more: a level that steps reach anyway.
            busy: The work of this step without solves.
        """


@dataclass(frozen=True)
class Staggered(Spread):
    """Spread the solves over the interval and bound the work of every step (the default).

    Attributes:
        headroom: Largest modelled optimizer work of a step over that of the dearest phase; solves beyond it slip.
    """

    headroom: float = 1.12

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
