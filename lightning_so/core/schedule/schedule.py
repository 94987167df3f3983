"""The staggered schedule: which unit is solved at which step, by whom.

A pure function of (step, units, ranks, their speed): every rank computes the same answer without communication.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

from lightning_so.contract.unit import Unit
from lightning_so.core.schedule.bought import Bought
from lightning_so.core.schedule.packing import owners, pack
from lightning_so.core.schedule.shares import shares

#: How often rows are observed between two solves of a unit, where a method observes rows; and after how many steps
#: again at the soonest, where intervals are longer later on and none are bought: every step tells little more.
FOLDS, LEAST_GAP = 4, 2
#: Stack and row of a block.
Place = tuple[int, int]


def gap(every: int) -> int:
    """Steps from one observation of a block's rows to the next, at an interval."""
    return max(1, every // FOLDS)


class Rung(IntEnum):
    """By what a unit is solved; where that fails it climbs to the next rung, for its next step."""

    QUICK = -1
    """By the fastest means, which want a last value that was good."""
    PLAIN = 0
    """From the last value, whatever it is."""
    AFRESH = 1
    """From the factor alone."""


@dataclass
class Schedule:
    """When each unit is due; advanced one step at a time by `due`.

    Attributes:
        units: The units, in a fixed order.
        ranks: World size.
        given: The owner of each unit; None where it is for the schedule to choose.
        origin: Step from which the interval counts: later than 0 after blocks were added or curvature was lost.
        placed: Step of the last packing; 0 before the first.
        tried: Step of each unit's last solve, good or failed (0 = never).
        last: Step of each unit's last good solve (0 = never).
        next: Step at which each unit is due.
        solved: Good solves of each unit since its block was last cold.
        failed: Failed solves of each unit since its last good one.
        rung: The lowest rung on which each unit may be solved.
        every: The interval of each unit that is in force.
        slot: The slot of each unit in it.
        final_slot: The slot of each unit in its largest interval.
        owner: The rank that solves each unit, from the packing over the largest interval; see `owners`.
        bought: What a share of time has bought, where one is asked for and was measured; None without.
    """

    units: list[Unit]
    ranks: int = 1
    given: Sequence[int | None] = ()
    origin: int = field(default=0, init=False)
    placed: int = field(default=0, init=False)
    tried: list[int] = field(default_factory=list, init=False)
    last: list[int] = field(default_factory=list, init=False)
    next: list[int] = field(default_factory=list, init=False)
    solved: list[int] = field(default_factory=list, init=False)
    failed: list[int] = field(default_factory=list, init=False)
    rung: list[int] = field(default_factory=list, init=False)
    every: list[int] = field(default_factory=list, init=False)
    slot: list[int] = field(default_factory=list, init=False)
    final_slot: list[int] = field(default_factory=list, init=False)
    owner: list[int] = field(default_factory=list, init=False)
    bought: Bought | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Fill the lists of a new schedule."""
        count = len(self.units)
        self.tried, self.last, self.solved, self.failed, self.rung = ([0] * count for _ in range(5))
        self.every, self.slot = [0] * count, [0] * count
        self.next = [1] * count
        self._of_period = {unit.period: unit for unit in self.units}
        first: dict[Place, int] = {}
        self._leads = [first.setdefault((unit.stack, unit.row), number) for number, unit in enumerate(self.units)]
        self.final_slot = pack([unit.cost for unit in self.units], self._final_slots)
        self.owner = self.owners([1.0] * self.ranks)

    @property
    def stays(self) -> bool:
        """Whether no unit may have another owner."""
        return bool(self.given) and None not in self.given

    def owners(self, slowness: list[float]) -> list[int]:
        """Who solves each unit where ranks are as slow as this: seconds for a solve, over those of the others."""
        if len({*slowness}) == 1:
            return owners(self.units, self.final_slot, self._final_slots, self.ranks, self.given)
        return shares(self.units, self.final_slot, self._final_slots, slowness, self.given)

    @cached_property
    def cycle(self) -> int:
        """The largest interval of any unit."""
        return max((unit.final for unit in self.units), default=1)

    def loads(self, number: int) -> range:
        """The steps of the cycle at which a unit is solved, at the largest interval."""
        return range(self.final_slot[number], self.cycle, self.units[number].final)

    def slots(self) -> list[list[int]]:
        """By step of the cycle, the units that are solved then, at the largest intervals."""
        found = [list[int]() for _ in range(self.cycle)]
        for number in range(len(self.units)):
            for step in self.loads(number):
                found[step].append(number)
        return found

    @property
    def costs(self) -> list[float]:
        """What a solve of each unit costs: seconds where they are bought, else by the model."""
        return [unit.cost for unit in self.units] if self.bought is None else self.bought.costs

    @property
    def _final_slots(self) -> list[int]:
        return self._slots([unit.final for unit in self.units])

    def _slots(self, every: list[int]) -> list[int]:
        return [steps if unit.staggered else 1 for steps, unit in zip(every, self.units, strict=True)]

    def due(self, step: int, budget: float, least: int = 1) -> list[int]:
        """The units to solve at this step, oldest due first; what does not fit the budget slips to the next step.

        `least` due units are always solved, so that nothing slips for ever.

        Args:
            step: The step, counted from 1.
            budget: Cost that solves may use at this step, over all ranks, or on each where it is bought; infinite for
                no bound.
            least: How many are solved whatever they cost.

        Returns:
            Indices into `units`.
        """
        self._repack(step)
        costs, chosen, rooms = self.costs, [], [budget] * (1 if self.bought is None else self.ranks)
        for _, unit in sorted((due, unit) for unit, due in enumerate(self.next) if due <= step):
            rank = self.owner[unit] % len(rooms)
            if self.units[unit].staggered and len(chosen) >= least and costs[unit] > rooms[rank]:
                continue
            rooms[rank] -= costs[unit]
            chosen.append(unit)
        for unit in chosen:
            self.tried[unit] = step
            self.next[unit] = self._following(unit, step + max(1, self.every[unit] // 2))
        return chosen

    def watched(self, step: int) -> list[Place]:
        """The blocks whose rows a step adds to.

        A block is watched `FOLDS` times an interval, at the steps of its first unit, and where a unit becomes due. One
        that has slipped is solved from what was seen.

        Args:
            step: The step.

        Returns:
            Their places, each once.
        """
        found: dict[Place, None] = {}
        for unit, lead in enumerate(self._leads):
            steps = gap(self.every[lead])
            if self.bought is None:
                steps = max(steps, min(LEAST_GAP, gap(self.units[lead].final)))
            new = self.next[unit] < step and not self.tried[unit]
            if new or self.next[unit] == step or (step - self.slot[lead]) % steps == 0:
                found[self.units[unit].stack, self.units[unit].row] = None
        return list(found)

    def _following(self, unit: int, step: int) -> int:
        """The first step from `step` on that belongs to a unit's slot: after a slip it returns to its own."""
        return step + (self.slot[unit] - step) % self.every[unit]

    def _repack(self, step: int) -> None:
        before = self.every
        self.place(step)
        if self.every is before:
            return
        for unit, (was, every, due) in enumerate(zip(before, self.every, self.next, strict=True)):
            # A unit that is overdue keeps its place in the queue; the others move to their new slot.
            if every != was and due >= step:
                self.next[unit] = self._following(unit, step)

    def place(self, step: int) -> None:
        """Pack the units for the intervals of a step, without moving what is due."""
        self.placed = step
        every = self._modelled(step - self.origin) if self.bought is None else self.bought.every
        if every != self.every:
            self.every, self.slot = every, pack(self.costs, self._slots(every))

    def _modelled(self, age: int) -> list[int]:
        """The interval of each unit at an age."""
        intervals = {period: unit.every(age) for period, unit in self._of_period.items()}
        return [intervals[unit.period] for unit in self.units]

    def unplace(self) -> None:
        """Be as before the first packing."""
        count = len(self.units)
        self.placed, self.every, self.slot = 0, [0] * count, [0] * count

    def restart(self, step: int) -> None:
        """Count the interval from this step: it starts from its smallest again, and every unit is due within it."""
        self.origin = step
        self.next = [min(due, step + 1) for due in self.next]

    def record(self, unit: int, *, good: bool, rung: Rung) -> None:
        """Note how a solve of a unit has ended.

        One that has failed is no failure yet below the highest rung: the unit is due at once, on the next one.

        Args:
            unit: The unit.
            good: Whether it was good.
            rung: On which it was solved.
        """
        if good:
            self.last[unit] = self.tried[unit]
            self.solved[unit] += 1
            self.failed[unit], self.rung[unit] = 0, Rung.QUICK
        elif rung is Rung.AFRESH:
            self.failed[unit] += 1
        else:
            # A verdict may come late, after that of a higher rung.
            self.rung[unit], self.next[unit] = max(self.rung[unit], rung + 1), self.tried[unit] + 1

    def skip(self, unit: int) -> None:
        """Note that a due unit has nothing new to solve: its last solution is as good as a new one."""
        self.last[unit] = self.tried[unit]

    def ages(self, step: int) -> list[int]:
        """Steps since each unit's last good solve."""
        return [step - last for last in self.last]

    def bound(self, unit: int) -> int:
        """Steps within which a unit is solved: packing, a new interval, and two rounds of slips of single units."""
        return 2 * self.every[unit] + 2 * len(self.units) + 1

    def overdue(self, step: int) -> list[int]:
        """Units that were not tried within the bound; there are none unless the schedule is broken."""
        since = max(self.origin, 0 if self.bought is None else self.bought.since)
        if step - max(min(self.tried, default=step), since) <= 2 * len(self.units):
            return []  # No bound is as low.
        return [unit for unit, tried in enumerate(self.tried) if step - max(tried, since) > self.bound(unit)]

    def history(self, unit: int) -> list[int]:
        """What resuming needs of a unit."""
        kept = self.tried, self.last, self.next, self.solved, self.failed, self.rung
        return [int(numbers[unit]) for numbers in kept]  # plain ones: files hold no class of ours

    def recall(self, unit: int, history: list[int]) -> None:
        """Load what `history` gave; in files of before there is nothing of `rung`."""
        kept = self.tried, self.last, self.next, self.solved, self.failed, self.rung
        for numbers, number in zip(kept, [*history, 0], strict=False):
            numbers[unit] = number
