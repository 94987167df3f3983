"""What the solves of a step may cost: the work of a step is bounded, and what does not fit slips to the next."""

import math
from dataclasses import dataclass

from lightning_so.contract.method import Action
from lightning_so.contract.spread import Spread
from lightning_so.core.host import Host
from lightning_so.core.schedule.units import Units
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.core.stacks.roster import Roster
from lightning_so.core.stacks.stack import methods_of


@dataclass(frozen=True)
class Budget:
    """By what the solves of a step are bounded.

    Attributes:
        peak: Optimizer work of the dearest phase: all blocks cold, or all warm with the fullest slot's solves.
        spreads: Those of the methods that bound their solves.
    """

    peak: float
    spreads: list[Spread]


def budget_of(units: Units, host: Host) -> Budget:
    """The budget of some units.

    Args:
        units: The units.
        host: The training.

    Returns:
        The budget.
    """
    phases = [0.0, 0.0]
    for stack in units.stacks:
        for block in stack.blocks:
            for warm in (False, True):
                cost = stack.method.step_cost(stack, stack.action(host, block, warm))
                phases[warm] += round(cost)  # Exact in any order.
    phases[1] += max(sum(units[number].cost for number in numbers) for numbers in units.schedule.slots())
    spreads = [spread for spread in (method.pace()[1] for method in methods_of(units.stacks)) if spread.staggered]
    return Budget(max(phases), spreads)


def due(units: Units, roster: Roster, host: Host, budget: Budget, step: int, *, entering: bool) -> list[int]:
    """Numbers of the units to solve at this step, within the budget; equal on all ranks.

    Args:
        units: The units; their schedule notes what is due.
        roster: Who takes part.
        host: The training.
        budget: The budget.
        step: The step.
        entering: Whether moments of any block will move into its basis.

    Returns:
        The numbers.
    """
    busy = sum(
        len(cohort.blocks) * round(cohort.stack.method.step_cost(cohort.stack, _settled(cohort, host)))
        for cohort in roster
    )
    schedule, worth = units.schedule, []
    room, least = min((spread.budget(budget.peak, busy) for spread in budget.spreads), default=math.inf), 1
    if schedule.bought is not None:
        room = schedule.bought.room
    if (step == 1 and schedule.cycle > 1) or entering:
        # What the first step allocates and what entries cost is enough for a step.
        room, least = 0.0, 0
    for number in schedule.due(step, room, least):
        unit = units[number]
        # A block without gradient has nothing new to solve.
        if unit.row in roster.live[unit.stack]:
            worth.append(number)
        else:
            schedule.skip(number)
    return worth


def _settled(cohort: Cohort, host: Host) -> Action:
    """What a cohort counts as. Blocks that wait for their first solve count as solved, or all would be at one step."""
    if cohort.action is not Action.BASE or cohort.stack.rotates:
        return cohort.action
    return cohort.stack.action(host, cohort.blocks[0], True)
