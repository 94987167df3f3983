"""What a share of time buys: a pure function of timings, so that all ranks choose equally."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lightning_so.core.overhead.timings import Timings
from lightning_so.core.schedule.packing import pack
from lightning_so.core.schedule.schedule import gap

#: Largest step over the median one that solves may make; what is measured differs a little from step to step.
PEAK = 1.12
#: How many times a method's own largest interval a base may grow, where time is scarce.
STRETCH = 8
#: Of how many rows at least one is taken.
THINNEST = 16


@dataclass(frozen=True)
class Wares:
    """What time can be spent on.

    Attributes:
        kinds: Kind of each unit: units of one are solved in one call.
        finals: Largest interval of each unit, as its method has it.
        owners: Rank that solves each unit.
        ranks: How many ranks share the solves.
        rows: Whether the method of each unit observes rows.
        relief: What steady work is modelled to come down to, as a share, if blocks that wait for their start rotate; 1
            where none wait, or where it costs as much.
    """

    kinds: Sequence[int]
    finals: Sequence[int]
    owners: Sequence[int]
    ranks: int
    rows: Sequence[bool]
    relief: float = 1.0


@dataclass(frozen=True)
class Choice:
    """What was bought.

    Attributes:
        every: Interval of each unit; powers of two.
        costs: Seconds of a solve of each.
        room: Seconds that a rank's solves may take at a step.
        thinning: Of how many rows one is taken.
        early: Whether blocks need not wait for their method's start.
        predicted: Share of the training's own step that all of ours will take, on the mean.
        largest: Largest step over the median one, by the same timings.
        floor: The least share that could have been bought.
    """

    every: list[int]
    costs: list[float]
    room: float
    thinning: int
    early: bool
    predicted: float
    largest: float
    floor: float


def choose(share: float, timings: Timings, wares: Wares) -> Choice:
    """Buy the most curvature for a share of the training's own step.

    First shorter intervals down to one step; then, from the methods' own largest ones on, fewer rows; then longer
    intervals. What is left shortens the intervals of single units, the cheapest first. If nothing is cheap enough, the
    cheapest is bought.

    Args:
        share: The share.
        timings: What was measured.
        wares: What time can be spent on.

    Returns:
        The choice.
    """
    costs = [timings.solves[kind] for kind in wares.kinds]
    early = wares.relief < 1 and timings.steady > share * timings.own
    steady = timings.steady * (wares.relief if early else 1.0)
    allowed = share * timings.own - steady

    def price(every: Sequence[int], thinning: int) -> float:
        return max(_solves(every, costs, wares)) + _watching(every, thinning, timings, wares)

    ladder = _ladder(wares, thin=timings.hooks > 0)
    every, thinning = next((rung for rung in ladder if price(*rung) <= allowed), ladder[-1])
    floor = steady + price(*ladder[-1])
    every = _shortened(every, thinning, allowed, costs, timings, wares)
    base = timings.own + steady + _watching(every, thinning, timings, wares)
    loads = _loads(every, costs, wares)
    usual = base + median(loads)
    room = max(0.0, PEAK * usual - base)
    greatest = max([min(max(loads), max(room, max(costs)))] if costs else [0.0])
    return Choice(
        every,
        costs,
        room,
        thinning,
        early,
        (steady + price(every, thinning)) / timings.own,
        (base + greatest) / usual,
        floor / timings.own,
    )


def _ladder(wares: Wares, *, thin: bool) -> list[tuple[list[int], int]]:
    """Intervals and thinning, from the dearest to the cheapest."""
    finals, longest = wares.finals, max(wares.finals, default=1)
    rungs = [([min(final, 2**k) for final in finals], 1) for k in range(longest.bit_length())]
    thinned = [2**k for k in range(1, THINNEST.bit_length())] if thin else []
    rungs += [(list(finals), thinning) for thinning in thinned]
    least = rungs[-1][1]
    return rungs + [([final * 2**k for final in finals], least) for k in range(1, STRETCH.bit_length())]


def _shortened(
    every: list[int], thinning: int, allowed: float, costs: list[float], timings: Timings, wares: Wares
) -> list[int]:
    """Halve the interval of as many units as what is left can pay, the cheapest first."""
    every, watching = list(every), _watching(every, thinning, timings, wares)
    left = [allowed - watching - seconds for seconds in _solves(every, costs, wares)]
    of_rows = timings.rows(thinning) / max(1, sum(wares.rows))
    for unit in sorted(range(len(costs)), key=lambda u: (costs[u], u)):
        was, owner = every[unit], wares.owners[unit]
        # Halved, a unit is solved once more an interval.
        solve, rows = costs[unit] / was, of_rows * (_share(was // 2) - _share(was)) if wares.rows[unit] else 0.0
        if was > 1 and solve + rows <= left[owner] and rows <= min(left):
            every[unit] = was // 2
            left = [seconds - rows for seconds in left]
            left[owner] -= solve
    return every


def _solves(every: Sequence[int], costs: Sequence[float], wares: Wares) -> list[float]:
    """Seconds of solves of a mean step, by rank."""
    of_rank = [0.0] * wares.ranks
    for interval, cost, owner in zip(every, costs, wares.owners, strict=True):
        of_rank[owner] += cost / interval
    return of_rank


def _share(every: int) -> float:
    """Share of the steps at which a block is watched."""
    return 1 / gap(every)


def _watching(every: Sequence[int], thinning: int, timings: Timings, wares: Wares) -> float:
    """Seconds that rows cost at a mean step."""
    shares = [_share(interval) for interval, rows in zip(every, wares.rows, strict=True) if rows]
    return timings.rows(thinning) * math.fsum(shares) / len(shares) if shares else 0.0


def _loads(every: list[int], costs: list[float], wares: Wares) -> list[float]:
    """Seconds of solves of each step of a cycle, of the rank that has most at it."""
    slots, cycle = pack(costs, every), max(every, default=1)
    loads = [[0.0] * cycle for _ in range(wares.ranks)]
    for slot, interval, cost, owner in zip(slots, every, costs, wares.owners, strict=True):
        for step in range(slot, cycle, interval):
            loads[owner][step] += cost
    return [max(step) for step in zip(*loads, strict=True)]
