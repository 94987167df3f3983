"""What happens to solves that have landed: good results are swapped in, and moments move with their basis."""

from functools import partial

from torch import Tensor

from lightning_so.actions import rotate
from lightning_so.contract.block import Block
from lightning_so.contract.unit import Unit
from lightning_so.core.host import Host
from lightning_so.core.matrices.matrices import Matrices, MomentChange
from lightning_so.core.report import Report
from lightning_so.core.schedule.units import Units
from lightning_so.core.solves.basis import cool
from lightning_so.core.solves.flight import Flight
from lightning_so.core.stacks.roster import Roster
from lightning_so.linalg.precision import FullPrecision
from lightning_so.linalg.result import Result

#: A block leaves its basis after this many failed solves in a row of one of its units.
FAILURES = 3


@FullPrecision()
def land(flights: list[Flight], units: Units, roster: Roster, host: Host, matrices: Matrices, report: Report) -> None:
    """Swap in, on all ranks, the results of all flights that land at this step.

    Args:
        flights: Those that have not, oldest first; the landed ones are taken out.
        units: Their histories; changed.
        roster: Who is warm; changed.
        host: The training.
        matrices: Where moments are whole.
        report: Tells the step, and counts.
    """
    while flights and flights[0].lands <= report.step:
        _swap(flights.pop(0), units, roster, host, matrices, report)


def _swap(flight: Flight, units: Units, roster: Roster, host: Host, matrices: Matrices, report: Report) -> None:
    """Swap in the results of a flight.

    A failure keeps the last one; a unit that goes on failing takes its block back to where cold blocks are.
    """
    schedule, changes = units.schedule, list[MomentChange]()
    for number, result in zip(flight.due, flight.arrived(), strict=True):
        unit, stack = units[number], units.stack(number)
        warm = roster.warm[unit.stack][unit.row]
        report.solves += 1
        report.retries += result.attempts > 1
        schedule.record(number, good=result.ok)
        if not result.ok:
            report.failures += 1
            if schedule.failed[number] >= FAILURES and warm:
                report.cooled += 1
                matrices.change_moments(changes)  # before it leaves the basis that they move it to
                changes.clear()
                cool((unit.stack, unit.row), units, roster, host, matrices)
            continue
        swapped = stack.solving.swap_in(stack.stats, unit, result) if stack.here or stack.shared else None
        if unit.columns and warm and stack.rotates:
            block = units.block(number)
            change = partial(_carry, host, block, unit, swapped, result)
            changes.append(MomentChange(block, host.states(block), change))
    matrices.change_moments(changes)


def _carry(
    host: Host,
    block: Block,
    unit: Unit,
    swapped: tuple[slice, Tensor, Tensor] | None,
    result: Result,
    states: list[dict],
) -> None:
    """Move moments along with a tile whose basis was swapped."""
    assert swapped is not None
    assert result.order is not None
    cut, old, new = swapped
    order = result.order.view(len(old), -1)
    rotate.carry(host.base, states, block.grouped, cut, unit.side, old, new, order, host.least_variance(block))
