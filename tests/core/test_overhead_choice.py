"""What a share of time buys is a pure function of timings."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_so.core.overhead.choice import PEAK, STRETCH, THINNEST, Wares, choose
from lightning_so.core.overhead.meter import Lap
from lightning_so.core.overhead.timings import Timings, timings, unsteady

COSTS = st.lists(st.floats(1e-4, 0.1), min_size=1, max_size=20)


def bought(share, costs, *, own=1.0, steady=0.05, final=32, hooks=0.0, folding=0.0, ranks=1, rows=False, **wares):
    count = len(costs)
    seen = Timings(own, steady, hooks, folding, 1, tuple(costs))
    owners = [number % ranks for number in range(count)]
    return choose(share, seen, Wares(range(count), [final] * count, owners, ranks, [rows] * count, **wares))


def of_solves(choice):
    return sum(cost / every for cost, every in zip(choice.costs, choice.every, strict=True))


@settings(deadline=None)
@given(COSTS, st.floats(0.06, 0.9))
def test_a_share_is_kept_wherever_it_can_be(costs, share):
    choice = bought(share, costs)
    assert choice.predicted <= max(share, choice.floor) + 1e-9
    assert choice.predicted == pytest.approx(0.05 + of_solves(choice))
    assert all(math.log2(every).is_integer() and 1 <= every <= 32 * STRETCH for every in choice.every)


@settings(deadline=None)
@given(COSTS, st.floats(0.06, 0.9))
def test_what_is_left_pays_for_no_further_halving(costs, share):
    choice = bought(share, costs)
    if choice.floor > share or max(choice.every) == 1:
        return
    # The cheapest of those that were not shortened.
    longest = max(choice.every)
    more = min(cost / longest for cost, every in zip(costs, choice.every, strict=True) if every == longest)
    assert choice.predicted + more > share - 1e-9


@settings(deadline=None)
@given(COSTS, st.floats(0.06, 0.5), st.floats(0.0, 0.4))
def test_more_time_buys_no_less(costs, share, more):
    assert bought(share + more, costs).predicted >= bought(share, costs).predicted - 1e-9


@settings(deadline=None)
@given(COSTS, st.floats(0.06, 0.9))
def test_solves_of_a_step_have_room_up_to_the_peak_over_the_median(costs, share):
    choice = bought(share, costs)
    base = 1.05
    assert base + choice.room >= base
    # However solves are packed, the bound is on the median step: half of the steps cost at least so much.
    assert base + choice.room <= PEAK * (base + sum(costs)) + 1e-9
    if max(costs) <= choice.room:
        assert choice.largest <= PEAK + 1e-9


def test_without_enough_time_the_cheapest_is_bought():
    choice = bought(0.04, [0.01] * 4)
    assert choice.every == [32 * STRETCH] * 4
    assert choice.predicted == choice.floor > 0.05


def test_ranks_share_the_solves():
    assert max(bought(0.1, [0.1] * 8, ranks=4).every) < max(bought(0.1, [0.1] * 8).every)


def test_rows_are_thinned_before_intervals_grow_beyond_the_methods_own():
    rows = {"hooks": 1.0, "rows": True}
    plenty, scarce, least = (bought(share, [0.001] * 4, **rows) for share in (0.5, 0.12, 0.055))
    assert (plenty.thinning, max(plenty.every) <= 32) == (1, True)
    assert scarce.thinning > 1
    assert max(scarce.every) <= 32
    assert (least.thinning, max(least.every) > 32) == (THINNEST, True)
    for share, choice in ((0.5, plenty), (0.12, scarce), (0.055, least)):
        assert choice.predicted <= max(share, choice.floor)


def test_what_hooks_do_not_do_is_not_thinned_away():
    assert bought(0.2, [0.001] * 4, folding=1.0, rows=True).thinning == 1


def test_blocks_need_not_wait_where_waiting_costs_more_than_there_is():
    assert bought(0.1, [0.01] * 4, steady=0.12, relief=0.5).early
    assert not bought(0.2, [0.01] * 4, steady=0.12, relief=0.5).early
    assert not bought(0.1, [0.01] * 4, steady=0.12).early
    # By then there is time for solves.
    assert max(bought(0.1, [0.01] * 4, steady=0.12, relief=0.5).every) <= 32


def lap(own=1.0, kinds=None, **parts):
    parts = {"steady": 0.1, "hooks": 0.0, "folding": 0.0, "solving": 0.0, "watched": 0.0, **parts}
    return Lap(own=own, kinds=kinds or {}, **parts)


def test_outliers_move_no_median():
    steady = [lap(kinds={0: (2, 0.2)}, solving=0.3)] * 9
    rare = [lap(50.0, steady=9.0, kinds={0: (2, 20.0)}, solving=30.0)] * 4
    found = timings(steady + rare, 1, 1)
    assert (found.own, found.steady) == (1.0, 0.1)
    # What it costs to swap a solve in is its own: the stage is half as long again as the call.
    assert found.solves == (pytest.approx(0.15),)


def test_rows_are_counted_for_a_step_that_watches_all():
    found = timings([lap(hooks=0.1, folding=0.02, watched=0.25), lap()], 0, 2)
    assert (found.hooks, found.folding) == (pytest.approx(0.4), pytest.approx(0.08))
    assert found.rows(4) == pytest.approx(0.08 + 0.2)


def test_kinds_that_were_not_seen_are_those_of_before_or_the_models():
    now = Timings(1, 0.1, 0, 0, 1, (0.2, math.nan, math.nan))
    before = replace(now, solves=(0.3, 0.5, math.nan))
    assert now.completed(before, [2.0, 5.0, 10.0]).solves == (0.2, 0.5, pytest.approx(1.0))
    assert now.completed(None, [2.0, 5.0, 10.0]).solves == (0.2, pytest.approx(0.5), pytest.approx(1.0))
    nothing = replace(now, solves=(math.nan,) * 3)
    assert all(map(math.isnan, nothing.completed(None, [2.0, 5.0, 10.0]).solves))


def test_timings_travel_as_numbers():
    found = Timings(1.0, 0.1, 0.2, 0.3, 4, (0.5, 0.6))
    assert Timings.of_vector(found.vector()) == found


def test_rounds_that_differ_are_seen():
    one = Timings(1.0, 0.1, 0, 0, 1, ())
    assert unsteady(one, replace(one, own=1.2), 0.3) is None
    assert unsteady(one, replace(one, own=1.5), 0.3) == pytest.approx(0.5)
    assert unsteady(replace(one, own=1.5), one, 0.3) == pytest.approx(0.5)
