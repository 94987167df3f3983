"""Units over the steps of an interval, and over ranks."""

from collections.abc import Sequence

from lightning_so.contract.unit import Unit


def pack(costs: list[float], slots: list[int]) -> list[int]:
    """Pack units over the slots of their intervals by cost: greedy longest first, ties by index; deterministic.

    A unit returns to its slot once an interval, so that of several intervals it counts at all its returns. Of one
    interval the greedy bound holds: the largest load is at most the mean load plus the largest cost.

    Args:
        costs: Cost of each unit.
        slots: Steps over which each may be spread, its interval or 1; powers of two.

    Returns:
        The slot of each unit.
    """
    cycle = max(slots, default=1)
    loads, place = [0.0] * cycle, [0] * len(costs)
    for unit in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        every = slots[unit]
        place[unit] = min(range(every), key=lambda s: (max(loads[s::every]), s))
        for at in range(place[unit], cycle, every):
            loads[at] += costs[unit]
    return place


def owners(
    units: list[Unit], slot: list[int], slots: list[int], ranks: int, given: Sequence[int | None] = ()
) -> list[int]:
    """Give the units of each slot to ranks, longest first: to the least loaded in the slot, then over all slots.

    When a unit is due does not depend on the world size, only who solves it: so any number of ranks gives the weights
    of one process.

    Args:
        units: The units.
        slot: Slot of each unit.
        slots: As of `pack`.
        ranks: World size.
        given: The owner of each unit, where it has one already; these are counted first.

    Returns:
        The owner of each unit.
    """
    cycle = max(slots, default=1)
    here = [[0.0] * cycle for _ in range(ranks)]
    whole, owner = [0.0] * ranks, [0] * len(units)
    of_block: dict[tuple[int, int], int] = {}
    given = given or [None] * len(units)
    for number in sorted(range(len(units)), key=lambda i: (given[i] is None, -units[i].cost, i)):
        unit, spots = units[number], slice(slot[number], cycle, slots[number])
        rank = given[number]
        if rank is None:
            rank = min(range(ranks), key=lambda r: (max(here[r][spots]), whole[r], r))
        if unit.together:
            rank = of_block.setdefault((unit.stack, unit.row), rank)
        here[rank][spots] = [load + unit.cost for load in here[rank][spots]]
        whole[rank] += unit.cost * len(here[rank][spots])
        owner[number] = rank
    return owner
