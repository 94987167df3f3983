"""What the solves of a step may cost: the work of a step is bounded, and what does not fit slips to the next."""

from typing import TYPE_CHECKING

from lightning_so.core import bases
from lightning_so.core.batch import Batch
from lightning_so.core.method import Action, Rotator

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def due(engine: "Engine") -> list[int]:
    """Numbers of the units to solve at this step, within the budget; equal on all ranks."""
    busy = sum(
        len(batch.blocks) * engine.method.work(batch.stack, _settled(engine, batch))
        for batches in engine.batches
        for batch in batches
    )
    schedule, step, worth = engine.schedule, engine.report.step, []
    room, least = engine.spread.budget(engine.peak, busy), 1
    if engine.spread.staggered and ((step == 1 and schedule.period > 1) or bases.entering(engine)):
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
    block, groups = batch.blocks[0], engine.optimizer.param_groups
    if batch.action is not Action.BASE or isinstance(engine.method, Rotator):
        return batch.action
    return engine.method.action(engine.base, groups[block.group], block, True)


def dearest(engine: "Engine") -> float:
    """Optimizer work of the dearest phase: all blocks cold, or all warm with the fullest slot's solves."""
    groups, phases = engine.optimizer.param_groups, [0.0, 0.0]
    for stack in engine.stacks:
        for block in stack.blocks:
            for warm in (False, True):
                action = engine.method.action(engine.base, groups[block.group], block, warm)
                phases[warm] += engine.method.work(stack, action)
    loads: dict[int, float] = {}
    for unit, slot in zip(engine.schedule.units, engine.schedule.final_slot, strict=True):
        loads[slot] = loads.get(slot, 0.0) + unit.cost
    phases[1] += max(loads.values(), default=0.0)
    return max(phases)
