"""Solve each unit on its owner and share the results: one padded exchange a step, sizes known to all beforehand.

An exchange may travel while the training goes on: a *flight* lands `lag` steps after it started, on every rank and in
one process alike, so that weights depend neither on the number of ranks nor on how fast the exchange was.

Wire format of one unit, padded to 8 bytes: the value, the permutation if there is one as int32, whether it is good and
the rungs that were tried as int32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_so.comm import spread
from lightning_so.contract.block import Stack
from lightning_so.contract.unit import Unit
from lightning_so.core.solves.wire import _pack, _unpack, _whole_bytes, pack, unit_bytes, unpack
from lightning_so.linalg.result import Result

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


@dataclass
class Flight:
    """Solves of one step, on their way to all ranks.

    Attributes:
        lands: The step at which they are swapped in.
        due: Numbers of the units, equal on all ranks.
        results: One a unit, once they have arrived; those of units that others own may be the verdict alone.
        arrive: Waits for them.
    """

    lands: int
    due: list[int]
    results: list[Result] | None = None
    arrive: Callable[[], list[Result]] = list

    def arrived(self) -> list[Result]:
        """The results: waits for the others, the first time."""
        if self.results is None:
            self.results = self.arrive()
        return self.results


def solve(engine: "Engine", due: list[int], how: Callable[[Stack, Unit], Result]) -> list[Result]:
    """The results of units on every rank, now; see `start`."""
    return start(engine, due, how).arrived()


def start(engine: "Engine", due: list[int], how: Callable[[Stack, Unit], Result]) -> Flight:
    """Solve the units that this rank owns, and send the results off.

    Args:
        engine: The engine.
        due: Numbers of units in the schedule, equal on all ranks.
        how: Solves a unit of a stack.

    Returns:
        The flight; each unit was solved by its owner alone.
    """
    units, owner, comm = engine.schedule.units, engine.schedule.owner, engine.comm
    mine: dict[int, Result] = {}
    for number in due:
        if owner[number] == comm.rank:
            mine[number] = how(engine.stacks[units[number].stack], units[number])
    engine.report.solved_here += len(mine)
    lands = engine.report.step + engine.lag
    if comm.ranks == 1 or not due:
        return Flight(lands, due, [mine[number] for number in due])
    sizes = [0] * comm.ranks
    for number in due:
        sizes[owner[number]] += unit_bytes(engine, number)
    device = engine.stacks[units[due[0]].stack].device
    nothing = torch.empty(0, dtype=torch.uint8, device=device)
    arrived = comm.start_gather(torch.cat([nothing, *(_pack(engine, mine[n], n) for n in mine)]), sizes)

    def arrive() -> list[Result]:
        wires, offsets, results = arrived(), [0] * comm.ranks, []
        for number in due:
            rank, size = owner[number], unit_bytes(engine, number)
            wire = wires[rank][offsets[rank] : offsets[rank] + size]
            offsets[rank] += size
            # The owner keeps its own: where blocks are worked on by their owners alone, the others have the verdict.
            results.append(mine[number] if number in mine else _unpack(engine, wire, number))
        return results

    return Flight(lands, due, arrive=arrive)


def complete(engine: "Engine", flight: Flight) -> list[Result]:
    """The results of a flight, those of units that others own too: a collective where parameters are sharded."""
    results = flight.arrived()
    if not engine.layout.split:
        return results
    units, owner, comm = engine.schedule.units, engine.schedule.owner, engine.comm
    wires: list[list[Tensor]] = [[] for _ in range(comm.ranks)]
    for number, result in zip(flight.due, results, strict=True):
        size, rank = _whole_bytes(engine, units[number]), owner[number]
        outline = torch.empty(size, dtype=torch.uint8, device="meta")
        wires[rank].append(pack(result, size, units[number].columns) if rank == comm.rank else outline)
    arrived = [iter(of_rank) for of_rank in spread(comm, wires)]
    return [
        unpack(next(arrived[owner[number]]), units[number], engine.stacks[units[number].stack].dtype)
        for number in flight.due
    ]
