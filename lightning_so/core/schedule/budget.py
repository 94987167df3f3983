"""What the solves of a step may cost: the work of a step is bounded, and what does not fit slips to the next."""

import math
from typing import TYPE_CHECKING

from lightning_so.contract.method import Action
from lightning_so.core.solves import basis
from lightning_so.core.stacks import stack as bases_stack
from lightning_so.core.stacks.cohort import Batch

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def due(engine: "Engine") -> list[int]:
    """Numbers of the units to solve at this step, within the budget; equal on all ranks."""
    busy = sum(
        len(batch.blocks) * round(batch.stack.method.work(batch.stack, _settled(engine, batch)))
        for batches in engine.batches
        for batch in batches
    )
    schedule, step, worth = engine.schedule, engine.report.step, []
    room, least = min((spread.budget(engine.peak, busy) for spread in engine.spreads), default=math.inf), 1
    if (step == 1 and schedule.cycle > 1) or basis.entering(engine):
        # What the first step allocates and what entries cost is enough for a step.
        room, least = 0.0, 0
    for number in schedule.due(step, room, least):
        unit = schedule.units[number]
        # A block without gradient has nothing new to solve.
        if unit.row in engine.live[unit.stack]:
            worth.append(number)
        else:
            schedule.skip(number)
    return worth


def _settled(engine: "Engine", batch: Batch) -> Action:
    """What a batch counts as. Blocks that wait for their first solve count as solved, or all would be at one step."""
    block = batch.blocks[0]
    if batch.action is not Action.BASE or bases_stack.turns(engine, batch.stack):
        return batch.action
    return block.method.action(engine.base, engine.group(block.group), block, True)


def dearest(engine: "Engine") -> float:
    """Optimizer work of the dearest phase: all blocks cold, or all warm with the fullest slot's solves."""
    groups, phases = engine.groups, [0.0, 0.0]
    for stack in engine.stacks:
        for block in stack.blocks:
            for warm in (False, True):
                action = stack.method.action(engine.base, groups[block.group], block, warm)
                phases[warm] += round(stack.method.work(stack, action))  # Exact in any order.
    loads: dict[int, float] = {}
    for number, unit in enumerate(engine.schedule.units):
        for step in engine.schedule.loads(number):
            loads[step] = loads.get(step, 0.0) + unit.cost
    phases[1] += max(loads.values(), default=0.0)
    return max(phases)
