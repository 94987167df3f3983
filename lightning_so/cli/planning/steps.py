"""What each step will take on each rank: the schedule is run, by the training's own code, and nothing is solved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from lightning_so.cli.planning.rehearsal import set_warm
from lightning_so.core.assembly import Parts
from lightning_so.core.schedule import budget
from lightning_so.core.schedule.schedule import Rung

#: Cycles of the schedule that are looked at, and as many before them since intervals have grown to their largest.
CYCLES = 4


@dataclass(frozen=True)
class Steps:
    """What is done at each step beyond the training itself.

    Attributes:
        steady: By rank, what every step takes.
        solves: By step, the units that are solved, by the ranks that solve any.
        watched: By step, the share of blocks whose rows are observed.
        owned: By rank, what its solves take at a mean step, by the model.
    """

    steady: list[float]
    solves: list[dict[int, list[int]]]
    watched: list[float]
    owned: list[float]


def settled(parts: Parts) -> Steps:
    """The steps of whole cycles at the largest intervals, all blocks warm.

    Args:
        parts: The parts of any rank: all ranks know the schedule. It is advanced, and is of no other use afterwards.

    Returns:
        The steps.
    """
    set_warm(parts, warm=True)
    units, schedule, ranks = parts.units, parts.units.schedule, parts.host.team.ranks
    first = 10 * max((unit.period for unit in units), default=1) + 1 + CYCLES * schedule.cycle
    places = sum(len(stack.blocks) for stack in parts.stacks if stack.tapped is not None)
    solves, watched = list[dict[int, list[int]]](), list[float]()
    for step in range(1, first + CYCLES * schedule.cycle):
        seen = sum(parts.stacks[index].tapped is not None for index, _ in schedule.watched(step)) if places else 0
        found = dict[int, list[int]]()
        for number in budget.due(units, parts.roster, parts.host, parts.budget, step, entering=False):
            schedule.record(number, good=True, rung=Rung.PLAIN)
            found.setdefault(schedule.owner[number], []).append(number)
        if step >= first:
            solves.append(found)
            watched.append(seen / places if places else 0.0)
    owned = [0.0] * ranks
    for number, unit in enumerate(units):
        owned[schedule.owner[number]] += unit.cost / unit.final
    return Steps(steady(parts), solves, watched, owned)


def steady(parts: Parts) -> list[float]:
    """By rank, multiply-adds of what every step does to warm blocks: owners alone, where there are some."""
    found = [0.0] * parts.host.team.ranks
    for stack in parts.stacks:
        for block in stack.blocks:
            cost = stack.method.step_cost(stack, stack.action(parts.host, block, True))
            for rank in range(len(found)) if block.owner is None else [block.owner]:
                found[rank] += cost
    return found


def every_step(parts: Parts) -> float:
    """Multiply-adds of what every step does to warm blocks, all of them together."""
    blocks = ((stack, block) for stack in parts.stacks for block in stack.blocks)
    return sum(stack.method.step_cost(stack, stack.action(parts.host, block, True)) for stack, block in blocks)


def lengths(
    steps: Steps, own: float, steady: Sequence[float], solve: Callable[[int], float], rows: float
) -> list[float]:
    """How long each step is: that of the rank that takes longest.

    Args:
        steps: The steps.
        own: The training's own step.
        steady: By rank, what every step takes beside it.
        solve: What a solve of a unit takes.
        rows: What observing the rows of all blocks takes.

    Returns:
        By step, in whatever unit these are.
    """
    idle = max(steady)
    return [
        own + seen * rows + max([idle, *(steady[rank] + sum(map(solve, numbers)) for rank, numbers in found.items())])
        for found, seen in zip(steps.solves, steps.watched, strict=True)
    ]


@dataclass(frozen=True)
class Pace:
    """Lengths of steps over the training's own.

    Attributes:
        mean: Of the mean step.
        median: Of the median one.
        largest: Of the largest one.
        own: The training's own step, in `unit`.
        unit: "s", or "multiply-adds".
    """

    mean: float
    median: float
    largest: float
    own: float
    unit: str

    @classmethod
    def of(cls, lengths: Sequence[float], own: float, unit: str) -> "Pace":
        """The pace of some steps."""
        return cls(sum(lengths) / len(lengths) / own, median(lengths) / own, max(lengths) / own, own, unit)
