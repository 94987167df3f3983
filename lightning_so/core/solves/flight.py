"""Solve each unit on its owner and share the results: one padded exchange a step, sizes known to all beforehand.

An exchange may travel while the training goes on: a *flight* lands `lag` steps after it started, on every rank and in
one process alike, so that weights depend neither on the number of ranks nor on how fast the exchange was. Units of one
kind that a rank owns are one call: their number is felt in the last bits, as libraries align matrices of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.comm import Local, replicated_tensors
from lightning_so.contract.unit import Unit
from lightning_so.core.schedule.schedule import Rung
from lightning_so.core.schedule.units import Units
from lightning_so.core.solves.line import InLine
from lightning_so.core.solves.wire import pack, solved_of, unit_bytes, unpack, whole_bytes, wire_of
from lightning_so.core.stacks.stack import Stack
from lightning_so.linalg.precision import FullPrecision
from lightning_so.linalg.result import Solved

#: Solves units that are alike, on a rung.
How = Callable[[Units, list[int], Rung], Solved]


@dataclass
class Batch:
    """Units of one kind and owner that were solved in one call.

    Attributes:
        numbers: Their numbers.
        solved: What came of it; of units that others own it may be the verdict alone.
        rung: On which they were solved.
    """

    numbers: list[int]
    solved: Solved
    rung: Rung


@dataclass
class Flight:
    """Solves of one step, on their way to all ranks.

    Attributes:
        lands: The step at which they are swapped in.
        batches: Those of one kind together, once they have arrived; their units are the same on all ranks.
        arrive: Waits for them.
        here: How many units were solved by this rank.
        solved: Waits for what this rank solves: until then nothing that solves read may change.
    """

    lands: int
    batches: list[Batch] | None = None
    arrive: Callable[[], list[Batch]] = list
    here: int = 0
    solved: Callable[[], object] = list

    def arrived(self) -> list[Batch]:
        """The results: waits for the others, the first time."""
        if self.batches is None:
            self.batches = self.arrive()
        return self.batches


def solve(units: Units, numbers: list[int], rung: Rung) -> Solved:
    """Solve units that are alike.

    Args:
        units: The units.
        numbers: Which.
        rung: By what.

    Returns:
        What came of it.
    """
    stack, asked = units.stack(numbers[0]), units.asked(numbers)
    if rung is Rung.AFRESH:  # One after the other: the host waits for each.
        return Solved.of([stack.solving.solve_afresh(stats, unit) for stats, unit in asked])
    return (stack.sprinting.solve_quickly if rung is Rung.QUICK else stack.solving.solve)(asked)


def launch(units: Units, due: list[int], how: How, team: Local, lands: int, line: InLine) -> Flight:
    """Solve the units that this rank owns, and send the results off.

    Args:
        units: The units.
        due: Numbers of those to solve, equal on all ranks.
        how: Solves units that are alike.
        team: How results travel.
        lands: The step at which they will be swapped in.
        line: Where solves run.

    Returns:
        The flight; each unit is solved by its owner alone.
    """
    # On which rung is settled here: a verdict that comes before the results does not change it.
    batches = [(rank, numbers, units.rung(numbers[0])) for rank, numbers in _owned(units, due, team.ranks)]
    solved = line.start(lambda: _solve_mine(units, batches, how, team))
    here = sum(len(numbers) for rank, numbers, _ in batches if rank == team.rank)

    def arrive() -> list[Batch]:
        mine, arrived = solved()
        if arrived is None:
            return list(mine.values())
        wires, offsets, found = arrived(), [0] * team.ranks, []
        for at, (rank, numbers, rung) in enumerate(batches):
            size = len(numbers) * unit_bytes(*_example(units, numbers))
            wire = wires[rank][offsets[rank] : offsets[rank] + size].view(len(numbers), -1)
            offsets[rank] += size
            # The owner keeps its own: where blocks are worked on by their owners alone, the others have the verdict.
            found.append(mine[at] if at in mine else Batch(numbers, solved_of(wire, *_example(units, numbers)), rung))
        return found

    return Flight(lands, arrive=arrive, here=here, solved=solved)


def wait(flights: list[Flight]) -> None:
    """Wait for all that this rank solves: factors may change from now on."""
    for flight in flights:
        flight.solved()


@FullPrecision()
def _solve_mine(
    units: Units, batches: list[tuple[int, list[int], Rung]], how: How, team: Local
) -> tuple[dict[int, Batch], Callable[[], list[Tensor]] | None]:
    """What this rank solves, by its place among all batches; and, between ranks, what waits for everybody's bytes."""
    mine = {
        at: Batch(numbers, how(units, numbers, rung), rung)
        for at, (rank, numbers, rung) in enumerate(batches)
        if rank == team.rank
    }
    if team.ranks == 1 or not batches:
        return mine, None
    sizes = [0] * team.ranks
    for rank, numbers, _ in batches:
        sizes[rank] += len(numbers) * unit_bytes(*_example(units, numbers))
    nothing = torch.empty(0, dtype=torch.uint8, device=units.stack(batches[0][1][0]).device)
    sent = [wire_of(batch.solved, *_example(units, batch.numbers)).flatten() for batch in mine.values()]
    return mine, team.start_gather(torch.cat([nothing, *sent]), sizes)


def _example(units: Units, numbers: list[int]) -> tuple[Stack, Unit]:
    """The stack and the unit of the first of some that are alike."""
    return units.stack(numbers[0]), units[numbers[0]]


def _owned(units: Units, due: list[int], ranks: int) -> list[tuple[int, list[int]]]:
    """Units that are alike, by owner: the rank and their numbers, equal on all ranks."""
    found = []
    for alike in units.alike(due):
        for rank in range(ranks):
            if numbers := [number for number in alike if units.schedule.owner[number] == rank]:
                found.append((rank, numbers))
    return found


def complete(flight: Flight, units: Units, team: Local) -> list[Batch]:
    """The results of a flight, those of units that others alone have too: a collective where there are any.

    Args:
        flight: The flight.
        units: The units.
        team: How results travel.

    Returns:
        Those of one kind and owner together.
    """
    batches = flight.arrived()
    wires: list[list[Tensor]] = [[] for _ in range(team.ranks)]
    alone = [batch for batch in batches if not units.stack(batch.numbers[0]).shared]
    if not alone:
        return batches
    owners = {id(batch): units.schedule.owner[batch.numbers[0]] for batch in alone}
    for batch in alone:
        rank = owners[id(batch)]
        size = whole_bytes(units.stack(batch.numbers[0]), units[batch.numbers[0]])
        outline = torch.empty(len(batch.numbers), size, dtype=torch.uint8, device="meta")
        wires[rank].append(pack(batch.solved, size) if rank == team.rank else outline)
    arrived = [iter(of_rank) for of_rank in replicated_tensors(team, wires)]
    found = []
    for batch in batches:
        if id(batch) not in owners:
            found.append(batch)
            continue
        unit, stack = units[batch.numbers[0]], units.stack(batch.numbers[0])
        found.append(Batch(batch.numbers, unpack(next(arrived[owners[id(batch)]]), unit, stack.dtype), batch.rung))
    return found
