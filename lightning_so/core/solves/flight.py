"""Solve each unit on its owner and share the results: one padded exchange a step, sizes known to all beforehand.

An exchange may travel while the training goes on: a *flight* lands `lag` steps after it started, on every rank and in
one process alike, so that weights depend neither on the number of ranks nor on how fast the exchange was.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.comm import Local, replicated_tensors
from lightning_so.contract.unit import Unit
from lightning_so.core.schedule.units import Units
from lightning_so.core.solves.wire import pack, result_of, unit_bytes, unpack, whole_bytes, wire_of
from lightning_so.core.stacks.stack import Stack
from lightning_so.linalg.precision import FullPrecision
from lightning_so.linalg.result import Result


@dataclass
class Flight:
    """Solves of one step, on their way to all ranks.

    Attributes:
        lands: The step at which they are swapped in.
        due: Numbers of the units, equal on all ranks.
        results: One a unit, once they have arrived; those of units that others own may be the verdict alone.
        arrive: Waits for them.
        here: How many were solved by this rank.
    """

    lands: int
    due: list[int]
    results: list[Result] | None = None
    arrive: Callable[[], list[Result]] = list
    here: int = 0

    def arrived(self) -> list[Result]:
        """The results: waits for the others, the first time."""
        if self.results is None:
            self.results = self.arrive()
        return self.results


@FullPrecision()
def launch(units: Units, due: list[int], how: Callable[[Stack, Unit], Result], team: Local, lands: int) -> Flight:
    """Solve the units that this rank owns, and send the results off.

    Args:
        units: The units.
        due: Numbers of those to solve, equal on all ranks.
        how: Solves a unit of a stack.
        team: How results travel.
        lands: The step at which they will be swapped in.

    Returns:
        The flight; each unit was solved by its owner alone.
    """
    owner = units.schedule.owner
    mine = {number: how(units.stack(number), units[number]) for number in due if owner[number] == team.rank}
    if team.ranks == 1 or not due:
        return Flight(lands, due, [mine[number] for number in due], here=len(mine))
    sizes = [0] * team.ranks
    for number in due:
        sizes[owner[number]] += unit_bytes(units.stack(number), units[number])
    nothing = torch.empty(0, dtype=torch.uint8, device=units.stack(due[0]).device)
    sent = [wire_of(result, units.stack(number), units[number]) for number, result in mine.items()]
    arrived = team.start_gather(torch.cat([nothing, *sent]), sizes)

    def arrive() -> list[Result]:
        wires, offsets, results = arrived(), [0] * team.ranks, []
        for number in due:
            rank, size = owner[number], unit_bytes(units.stack(number), units[number])
            wire = wires[rank][offsets[rank] : offsets[rank] + size]
            offsets[rank] += size
            # The owner keeps its own: where blocks are worked on by their owners alone, the others have the verdict.
            results.append(mine[number] if number in mine else result_of(wire, units.stack(number), units[number]))
        return results

    return Flight(lands, due, arrive=arrive, here=len(mine))


def complete(flight: Flight, units: Units, team: Local, *, sharded: bool) -> list[Result]:
    """The results of a flight, those of units that others own too: a collective where parameters are sharded.

    Args:
        flight: The flight.
        units: The units.
        team: How results travel.
        sharded: Whether they are.

    Returns:
        One a unit that was due.
    """
    results = flight.arrived()
    if not sharded:
        return results
    owner = units.schedule.owner
    wires: list[list[Tensor]] = [[] for _ in range(team.ranks)]
    for number, result in zip(flight.due, results, strict=True):
        size, rank = whole_bytes(units.stack(number), units[number]), owner[number]
        outline = torch.empty(size, dtype=torch.uint8, device="meta")
        wires[rank].append(pack(result, size, units[number].columns) if rank == team.rank else outline)
    arrived = [iter(of_rank) for of_rank in replicated_tensors(team, wires)]
    return [unpack(next(arrived[owner[number]]), units[number], units.stack(number).dtype) for number in flight.due]
