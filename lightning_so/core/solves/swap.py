"""What happens to solves that have landed: good results are swapped in, and moments move with their bases.

Which are good is decided on the device. The host learns of it with the next step's guard, for which it waits anyway;
at once where a block is cold, which must know before it becomes warm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.actions import rotate
from lightning_so.contract.unit import Unit
from lightning_so.core.matrices.matrices import MomentChange
from lightning_so.core.schedule.schedule import Rung
from lightning_so.core.solves.basis import cool
from lightning_so.core.solves.drift import drift
from lightning_so.core.solves.flight import Batch, Flight
from lightning_so.core.solves.landing import Landing
from lightning_so.linalg.precision import FullPrecision
from lightning_so.linalg.result import Solved

#: A block leaves its basis after this many failed solves in a row of one of its units.
FAILURES = 3


@dataclass
class Unread:
    """Verdicts that the host does not know yet.

    Attributes:
        numbers: Units that were swapped in.
        good: Which of them are good, on their device.
        rung: On which they were solved.
    """

    numbers: list[int]
    good: Tensor
    rung: Rung


@dataclass
class _Move:
    """The moments of one block are to follow one of its bases.

    Attributes:
        unit: The basis.
        turn: Its tile, what it was, what it is, and the permutation; None if it has not changed, and on ranks that are
            not the owner of a block that has one.
    """

    unit: Unit
    turn: tuple[slice, Tensor, Tensor, Tensor] | None = None


@FullPrecision()
def land(flights: list[Flight], unread: list[Unread], at: Landing) -> None:
    """Swap in, on all ranks, the results of all flights that land at this step.

    Args:
        flights: Those that have not, oldest first; the landed ones are taken out.
        unread: Gets the verdicts.
        at: Where they land.
    """
    units, warm_rows = at.units, at.roster.warm
    while flights and flights[0].lands <= at.report.step:
        batches = flights.pop(0).arrived()
        warm = all(warm_rows[units[n].stack][units[n].row] for batch in batches for n in batch.numbers)
        found = [Unread(batch.numbers, batch.solved.good, batch.rung) for batch in batches]
        flags = [True] * sum(len(some.numbers) for some in found) if warm else read(found)
        _swap(batches, apart(found, flags), at)
        if warm:
            unread += found
        else:
            judge(found, flags, at)


def learn(flags: list[bool], unread: list[Unread], at: Landing) -> None:
    """Judge what was not read, by what has been read of `together`; see `judge`."""
    # Taken out first: a signal's handler may look at them in the middle.
    known = unread[:]
    unread.clear()
    judge(known, flags, at)


def catch_up(unread: list[Unread], at: Landing) -> None:
    """Read and judge what the host does not know yet, between steps of all ranks: before something is reported."""
    learn(read(unread), unread, at)


def read(unread: Sequence[Unread]) -> list[bool]:
    """The verdicts of `together`: the host waits for them, once."""
    flags = together(unread)
    return [] if flags is None else flags.tolist()


def together(unread: Sequence[Unread]) -> Tensor | None:
    """All verdicts in one tensor, that they may be read with others; None where there are none."""
    return torch.cat([some.good.to(unread[0].good.device) for some in unread]) if unread else None


def apart(unread: Sequence[Unread], flags: list[bool]) -> list[list[bool]]:
    """The verdicts that were read of `together`, as they belong to each."""
    found = iter(flags)
    return [[bool(next(found)) for _ in some.numbers] for some in unread]


def judge(unread: Sequence[Unread], flags: list[bool], at: Landing) -> None:
    """Note how solves have ended. A unit that goes on failing takes its block back to where cold blocks are.

    Args:
        unread: The units.
        flags: Which of them are good, as `together` has them; equal on all ranks.
        at: Where they have landed.
    """
    schedule, report = at.units.schedule, at.report
    for some, good in zip(unread, apart(unread, flags), strict=True):
        for number, ok in zip(some.numbers, good, strict=True):
            report.retries += some.rung is Rung.AFRESH or (some.rung is Rung.QUICK and not ok)
            report.failures += some.rung is Rung.AFRESH and not ok
            schedule.record(number, good=ok, rung=some.rung)
            place = at.units[number].stack, at.units[number].row
            if schedule.failed[number] >= FAILURES and at.roster.warm[place[0]][place[1]]:
                report.cooled += 1
                cool(place, at)


def _swap(batches: list[Batch], good: list[list[bool]], at: Landing) -> None:
    """Swap in the results of a flight: what is known to be bad, or is not good on the device, changes nothing."""
    moves = list[_Move]()
    for batch, flags in zip(batches, good, strict=True):
        at.report.solves += len(batch.numbers)
        numbers = [number for number, ok in zip(batch.numbers, flags, strict=True) if ok]
        if numbers:
            moves += _swap_alike(numbers, batch.solved.some(flags), at)
    alike: dict[tuple[int, int, int], list[_Move]] = {}
    # One side after the other, whoever has solved them: the order decides how moments are rounded.
    for move in sorted(moves, key=lambda move: (move.unit.side, move.unit.tile, move.unit.stack, move.unit.row)):
        alike.setdefault((move.unit.side, move.unit.tile, move.unit.stack), []).append(move)
    at.matrices.change_moments([_change(some, at) for some in alike.values()])


def _swap_alike(numbers: list[int], solved: Solved, at: Landing) -> list[_Move]:
    """Swap in units of one kind; the moves that moments must make with them."""
    asked, stack = at.units.asked(numbers), at.units.stack(numbers[0])
    here = stack.here or stack.shared
    solved = solved.kept() if here else solved
    turned = stack.solving.swap_in(asked, solved) if here else None
    if at.turned is not None and turned is not None and solved.order is not None:
        at.turned.append(drift(turned.old, turned.new, solved.order.view(turned.old.shape[:3])))
    moves = []
    for position, (_, unit) in enumerate(asked):
        if not (unit.columns and at.units.stacks[unit.stack].rotates and at.roster.warm[unit.stack][unit.row]):
            continue
        if turned is None or solved.order is None:
            moves.append(_Move(unit))
        else:
            order = solved.order[position].view(turned.old.shape[1], -1)
            moves.append(_Move(unit, (turned.cuts[position], turned.old[position], turned.new[position], order)))
    return moves


def _change(moves: list[_Move], at: Landing) -> MomentChange:
    """Moves the moments of blocks of one stack along with one tile of one of their sides."""
    blocks, host = [at.units.stacks[move.unit.stack].blocks[move.unit.row] for move in moves], at.host

    def carry(states: list[list[dict]]) -> None:
        turned = [(*move.turn, *of) for move, *of in zip(moves, blocks, states, strict=True) if move.turn is not None]
        if turned:
            cuts, old, new, order, known, of_known = zip(*turned, strict=True)
            least = [host.least_variance(block) for block in known]
            bases = torch.stack(old), torch.stack(new), torch.stack(order)
            rotate.carry(host.base, of_known, known[0].grouped, cuts[0], moves[0].unit.side, *bases, least)

    return MomentChange(blocks, [host.states(block) for block in blocks], carry)
