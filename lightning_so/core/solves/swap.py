"""Results that have landed are swapped in."""

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_so.actions import rotate
from lightning_so.contract.block import Block
from lightning_so.contract.unit import Unit
from lightning_so.core.host import least_variance
from lightning_so.core.matrices.matrices import Job
from lightning_so.core.solves import flight as share
from lightning_so.core.solves.basis import cool
from lightning_so.core.stacks.stack import solving, turns
from lightning_so.linalg.result import Result

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


#: A block leaves its basis after this many failed solves in a row of one of its units.
FAILURES = 3


def solve(engine: "Engine", due: list[int]) -> None:
    """Solve the due units, each on its owner; swap in on all ranks what has landed.

    Args:
        engine: The engine; its `flights` are those that have not.
        due: Numbers of units in the schedule.
    """
    _land(engine)
    if due:
        flight = share.start(engine, due, lambda stack, unit: stack.method.solve(stack.stats, unit))
        engine.flights.append(flight)
        _land(engine)


def _land(engine: "Engine") -> None:
    """Swap in the bases of all flights that land at this step."""
    while engine.flights and engine.flights[0].lands <= engine.report.step:
        _swap(engine, engine.flights.pop(0))


def _swap(engine: "Engine", flight: share.Flight) -> None:
    """Swap in the bases of a flight.

    A failure keeps the last basis; a unit that goes on failing takes its block back to where cold blocks are.
    """
    report, schedule, jobs = engine.report, engine.schedule, list[Job]()
    for number, result in zip(flight.due, flight.arrived(), strict=True):
        unit = schedule.units[number]
        stack = engine.stacks[unit.stack]
        report.solves += 1
        report.retries += result.attempts > 1
        schedule.record(number, good=result.ok)
        if not result.ok:
            report.failures += 1
            if schedule.failed[number] >= FAILURES and engine.warm[unit.stack][unit.row]:
                report.cooled += 1
                engine.layout.move(jobs)  # before it leaves the basis that they move it to
                jobs.clear()
                cool(engine, unit.stack, unit.row)
            continue
        swapped = solving(stack).accept(stack.stats, unit, result) if stack.here or stack.shared else None
        if unit.columns and engine.warm[unit.stack][unit.row] and turns(engine, stack):
            block = stack.blocks[unit.row]
            jobs.append(Job(block, engine.layout.states(block), partial(_carry, engine, block, unit, swapped, result)))
    engine.layout.move(jobs)


def _carry(
    engine: "Engine",
    block: Block,
    unit: Unit,
    swapped: tuple[slice, Tensor, Tensor] | None,
    result: Result,
    states: list[dict],
) -> None:
    """Move moments along with a tile whose basis was swapped."""
    assert swapped is not None
    assert result.order is not None
    (cut, old, new), least = swapped, least_variance(engine, block)
    order = result.order.view(len(old), -1)
    rotate.carry(engine.base, states, block.grouped, cut, unit.side, old, new, order, least)
