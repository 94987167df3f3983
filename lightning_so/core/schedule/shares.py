"""Units over ranks of unequal speed: shares that take equally long."""

from collections.abc import Sequence

from lightning_so.contract.unit import Unit

#: By how much a rank's seconds may be beyond its fair part: so much is left to level single steps.
SLACK = 1.05


def shares(
    units: Sequence[Unit],
    slot: Sequence[int],
    slots: Sequence[int],
    slowness: Sequence[float],
    given: Sequence[int | None] = (),
) -> list[int]:
    """Give units to ranks so that all are busy equally long, largest first: as far as that leaves a choice, at a step.

    A rank may take what leaves its seconds in a cycle, s_r * sum(cost), within `SLACK` of the fair part
    F = sum(cost) / sum(1 / s_r); of those that may, it is given to the one that ends first at the steps of the unit.
    Equal ranks are `packing.owners`'s, whose placement differs.

    Args:
        units: The units.
        slot: Slot of each, see `packing.pack`.
        slots: Steps over which each may be spread, see `packing.pack`.
        slowness: Of each rank, its seconds for a solve over the others'; above 0.
        given: The owner of each unit, where it has one already; these are counted first.

    Returns:
        The owner of each unit. When a unit is due does not depend on it.
    """
    cycle, ranks = max(slots, default=1), range(len(slowness))
    here, whole, owner = [[0.0] * cycle for _ in ranks], [0.0 for _ in ranks], [0] * len(units)
    pieces, given = _pieces(units), given or [None] * len(units)
    works = [sum(units[number].cost * (cycle // slots[number]) for number in piece) for piece in pieces]
    most = SLACK * sum(works) / sum(1 / slow for slow in slowness)
    for at in sorted(range(len(pieces)), key=lambda i: (given[pieces[i][0]] is None, -works[i], i)):
        piece, ends = pieces[at], [whole[r] + works[at] * slowness[r] for r in ranks]
        spots = [(slice(slot[number], cycle, slots[number]), units[number].cost) for number in piece]
        able = [r for r in ranks if ends[r] <= most] or [min(ranks, key=lambda r: (ends[r], r))]
        able = [r for r in ranks if r == given[piece[0]]] or able
        peaks = {r: max(max(here[r][steps]) + cost * slowness[r] for steps, cost in spots) for r in able}
        rank = min(able, key=lambda r: (peaks[r], ends[r], r))
        whole[rank] = ends[rank]
        for steps, cost in spots:
            here[rank][steps] = [load + cost * slowness[rank] for load in here[rank][steps]]
        for number in piece:
            owner[number] = rank
    return owner


def _pieces(units: Sequence[Unit]) -> list[list[int]]:
    """What has one owner: single units, or those of a block whose factors are in one place."""
    found: dict[tuple[int, ...], list[int]] = {}
    for number, unit in enumerate(units):
        key = (unit.stack, unit.row) if unit.together else (number,)
        found.setdefault(key, []).append(number)
    return list(found.values())
