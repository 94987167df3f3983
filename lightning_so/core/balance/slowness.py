"""How slow ranks are, from the seconds of what several of them have solved: sums and quotients, equal on all machines.

A rank's slowness is its seconds over those that the median rank takes for the same solves. Ranks that share no kind of
solve with another one cannot be compared, and stay what they were.
"""

import math
from collections.abc import Sequence

#: Slowness is counted in parts of the median rank's.
PARTS = 8
#: A slowness in force is left where two rounds in a row were measured to be off by more than this factor, so that ranks
#: that are equal but for noise stay equal.
STEADY = 1.25
#: Rounds of fitting; one is enough for what all ranks have solved.
ROUNDS = 20


def measured(seconds_RK: Sequence[Sequence[float]], before: Sequence[float]) -> list[float]:
    """The slowness of each rank, by proportional fitting: s_r = sum_k t_rk / sum_k b_k, b_k = sum_r t_rk / sum_r s_r.

    b_k is what the median rank takes for a solve of column k. Sums are over what was seen of columns that two ranks
    have.

    Args:
        seconds_RK: Seconds t_rk of a solve by rank and column; not a number where none was seen. Equal on all ranks.
        before: What to begin with, which ranks that cannot be compared keep.

    Returns:
        Seconds over those of the (lower) median rank.
    """
    ranks, found = range(len(seconds_RK)), list(before)
    seen = [[(r, row[k]) for r, row in enumerate(seconds_RK) if row[k] > 0] for k in range(len(seconds_RK[0]))]
    shared = [column for column in seen if len(column) > 1]
    for _ in range(ROUNDS):
        took, expected = [0.0 for _ in ranks], [0.0 for _ in ranks]
        for column in shared:
            base = sum(seconds for _, seconds in column) / sum(found[rank] for rank, _ in column)
            for rank, seconds in column:
                took[rank] += seconds
                expected[rank] += base
        now = [t / e if e else f for t, e, f in zip(took, expected, found, strict=True)]
        if all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(now, found, strict=True)):
            break
        found = now
    usual = sorted(found)[(len(found) - 1) // 2]
    return [slow / usual for slow in found]


def settled(force: Sequence[int], last: Sequence[float], now: Sequence[float]) -> list[int]:
    """What is in force after a round.

    Args:
        force: What was, in `PARTS`.
        last: What the round before has measured.
        now: What this one has.

    Returns:
        What is, in `PARTS`; of a rank that both find off by more than `STEADY`, on one side, the milder of both.
    """
    found = []
    for parts, *both in zip(force, last, now, strict=True):
        slow = parts / PARTS
        if min(both) > slow * STEADY:
            parts = max(1, round(PARTS * min(both)))
        elif max(both) * STEADY < slow:
            parts = max(1, round(PARTS * max(both)))
        found.append(parts)
    return found
