"""The schedule: packing, intervals, slip and its bound, for any number of units and ranks."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_so import SOAP, ConfigError, Staggered
from lightning_so.core.schedule import Schedule, Unit, interval, pack

COSTS = st.lists(st.floats(0.1, 1e3), min_size=1, max_size=40)


@given(COSTS, st.integers(1, 16), st.integers(1, 8))
def test_packing_is_complete_balanced_and_deterministic(costs, slots, ranks):
    places = pack(costs, slots, ranks)
    assert len(places) == len(costs)
    assert all(0 <= slot < slots and 0 <= rank < ranks for slot, rank in places)
    loads = {}
    for place, cost in zip(places, costs, strict=True):
        loads[place] = loads.get(place, 0.0) + cost
    # Greedy longest-first: the last unit put on the fullest cell found it at most at the mean.
    assert max(loads.values()) <= sum(costs) / (slots * ranks) + max(costs) + 1e-6
    assert places == pack(list(costs), slots, ranks)


def test_packing_uses_different_steps_before_different_ranks():
    assert {slot for slot, _ in pack([1.0] * 4, 4, 2)} == {0, 1, 2, 3}


@given(st.integers(1, 10_000), st.integers(1, 1000))
def test_interval_is_a_power_of_two_within_the_period(step, period):
    every = interval(step, period)
    assert math.log2(every).is_integer()
    assert every <= period
    assert every <= max(2, step / 10)
    assert every > min(period, max(2, step / 10)) / 2


def units(costs):
    return [Unit(0, row, 0, 0, cost) for row, cost in enumerate(costs)]


@settings(deadline=None, max_examples=40)
@given(COSTS, st.integers(1, 64), st.integers(1, 4), st.floats(0.0, 3000.0))
def test_every_unit_is_solved_within_its_bound_and_no_rank_over_budget(costs, period, ranks, budget):
    schedule = Schedule(units(costs), period, ranks=ranks)
    for step in range(1, 200):
        due = schedule.due(step, budget)
        assert len(due) == len(set(due))
        for rank in range(ranks):
            mine = [costs[u] for u in due if schedule.owner[u] == rank]
            # One unit is always let through; beyond it the budget holds.
            assert sum(mine) <= max(budget, max(mine, default=0.0)) + 1e-6
        # Packing spreads a round over 1.5 intervals; a slip adds at most one round of single units.
        assert schedule.age(step) <= 1.5 * schedule.every + 2 * len(costs) + 1


def test_without_a_bound_a_unit_is_solved_once_an_interval():
    schedule = Schedule(units([1.0] * 8), 8)
    for step in range(1, 201):
        schedule.due(step, math.inf)
    counts = [0] * 8
    for step in range(201, 281):
        due = schedule.due(step, math.inf)
        assert len(due) == 1
        counts[due[0]] += 1
    assert counts == [10] * 8


def test_synchronous_solves_all_on_one_step():
    schedule = Schedule(units([1.0] * 8), 8, staggered=False)
    sizes = [len(schedule.due(step, math.inf)) for step in range(1, 201)]
    assert set(sizes) == {0, 8}


def test_what_does_not_fit_slips_oldest_first():
    schedule = Schedule(units([5.0, 5.0, 5.0]), 1)
    assert [schedule.due(step, 6.0) for step in (1, 2, 3, 4)] == [[0], [1], [2], [0]]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"period": 0}, "period"), ({"beta": 1.0}, "beta"), ({"beta": -0.1}, "beta"), ({"ridge": 2.0}, "ridge"),
     ({"cap": 1}, "cap"), ({"start": -1}, "start"), ({"schedule": "burst"}, "schedule"), ({"period": "50"}, "period")],
)  # fmt: skip
def test_bad_hyper_parameters_are_named(arguments, name):
    with pytest.raises(ConfigError, match=rf"SOAP\({name}="):
        SOAP(**arguments)


def test_bad_headroom_is_named():
    with pytest.raises(ConfigError, match="headroom"):
        Staggered(headroom=0.5)
