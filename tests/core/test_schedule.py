"""The schedule: packing, intervals, slip and its bound, for any number of units and ranks."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_so import SOAP, ConfigError, Staggered
from lightning_so.contract.unit import Unit, interval
from lightning_so.core.schedule.bought import Bought
from lightning_so.core.schedule.packing import owners, pack
from lightning_so.core.schedule.schedule import FOLDS, Schedule

COSTS = st.lists(st.floats(0.1, 1e3), min_size=1, max_size=40)


@given(COSTS, st.integers(1, 16), st.integers(1, 8))
def test_packing_is_complete_balanced_and_deterministic(costs, slots, ranks):
    place = pack(costs, [slots] * len(costs))
    owner = owners(units(costs), place, [slots] * len(costs), ranks)
    assert len(place) == len(owner) == len(costs)
    assert all(0 <= slot < slots for slot in place)
    assert all(0 <= rank < ranks for rank in owner)
    slot_loads, loads = [0.0] * slots, {}
    for slot, rank, cost in zip(place, owner, costs, strict=True):
        slot_loads[slot] += cost
        loads[slot, rank] = loads.get((slot, rank), 0.0) + cost
    # Greedy longest-first: the last unit put on the fullest place found it at most at the mean.
    assert max(slot_loads) <= sum(costs) / slots + max(costs) + 1e-6
    for (slot, _), load in loads.items():
        assert load <= slot_loads[slot] / ranks + max(costs) + 1e-6
    assert (place, owner) == (
        pack(costs, [slots] * len(costs)),
        owners(units(costs), list(place), [slots] * len(costs), ranks),
    )


def test_packing_uses_different_steps_before_different_ranks():
    assert sorted(pack([1.0] * 4, [4] * 4)) == [0, 1, 2, 3]


@given(st.lists(st.tuples(st.floats(0.1, 1e3), st.sampled_from([1, 2, 4, 8])), min_size=1, max_size=30))
@example([(8.0, 4), (7.0, 4), (4.0, 2), (8.0, 2), (5.0, 4)])
def test_a_unit_counts_at_all_its_returns(both):
    costs, slots = (list(part) for part in zip(*both, strict=True))
    place, last = pack(costs, slots), min(range(len(costs)), key=lambda i: (costs[i], -i))
    loads = [0.0] * max(slots)
    for step in range(len(loads)):
        others = (i for i in range(len(costs)) if i != last and step % slots[i] == place[i])
        loads[step] = sum(costs[i] for i in others)
    peaks = [max(loads[slot :: slots[last]]) for slot in range(slots[last])]
    assert peaks[place[last]] <= min(peaks) * (1 + 1e-9)


def test_ranks_count_all_returns_of_a_unit():
    assert owners(units([4.0, 3.0, 1.0]), [0, 1, 2], [4, 2, 4], 2) == [0, 1, 0]


def test_units_of_a_block_have_one_owner_where_its_factors_are():
    pairs = [Unit(0, row, side, 0, 1.0, period=4, together=True) for row in range(4) for side in (0, 1)]
    owner = Schedule(pairs, ranks=2).owner
    assert owner[::2] == owner[1::2]
    assert sorted(owner) == [0] * 4 + [1] * 4


@given(COSTS, st.integers(2, 8))
def test_ranks_share_the_work_of_all_slots(costs, ranks):
    owner = owners(
        units(costs), list(range(len(costs))), [64] * len(costs), ranks
    )  # one unit a slot: only the sums can be balanced
    loads = [sum(cost for cost, own in zip(costs, owner, strict=True) if own == rank) for rank in range(ranks)]
    assert max(loads) <= sum(costs) / ranks + max(costs) + 1e-6


@settings(deadline=None, max_examples=20)
@given(COSTS, st.integers(1, 64), st.integers(2, 8), st.floats(0.0, 3000.0))
def test_when_a_unit_is_due_does_not_depend_on_the_world_size(costs, period, ranks, budget):
    one, many = Schedule(units(costs, period)), Schedule(units(costs, period), ranks=ranks)
    assert all(one.due(step, budget) == many.due(step, budget) for step in range(1, 120))


@given(st.integers(1, 10_000), st.integers(1, 1000))
def test_interval_is_a_power_of_two_within_the_period(step, period):
    every = interval(step, period)
    assert math.log2(every).is_integer()
    assert every <= period
    assert every <= max(2, step / 10)
    assert every > min(period, max(2, step / 10)) / 2


def units(costs, period=1, **options):
    return [Unit(0, row, 0, 0, cost, period=period, **options) for row, cost in enumerate(costs)]


@settings(deadline=None, max_examples=40)
@given(COSTS, st.integers(1, 64), st.integers(1, 4), st.floats(0.0, 3000.0))
def test_every_unit_is_solved_within_its_bound_and_no_step_over_budget(costs, period, ranks, budget):
    schedule = Schedule(units(costs, period), ranks=ranks)
    for step in range(1, 200):
        due = schedule.due(step, budget)
        assert len(due) == len(set(due))
        # One unit is always let through; beyond it the budget holds.
        assert sum(costs[u] for u in due) <= max(budget, max((costs[u] for u in due), default=0.0)) + 1e-6
        # Packing spreads a round over 1.5 intervals; a slip adds at most one round of single units.
        assert max(step - tried for tried in schedule.tried) <= 1.5 * schedule.every[0] + 2 * len(costs) + 1
        assert schedule.overdue(step) == []


def test_without_a_bound_a_unit_is_solved_once_an_interval():
    schedule = Schedule(units([1.0] * 8, 8))
    for step in range(1, 201):
        schedule.due(step, math.inf)
    counts = [0] * 8
    for step in range(201, 281):
        due = schedule.due(step, math.inf)
        assert len(due) == 1
        counts[due[0]] += 1
    assert counts == [10] * 8


def test_synchronous_solves_all_on_one_step():
    schedule = Schedule(units([1.0] * 8, 8, staggered=False))
    sizes = [len(schedule.due(step, math.inf)) for step in range(1, 201)]
    assert set(sizes) == {0, 8}


def test_units_without_slots_take_room_from_those_with_slots():
    both = [*units([5.0], staggered=False), *units([5.0])]
    assert Schedule(both).due(1, 6.0) == [0]
    assert Schedule(both).due(1, 10.0) == [0, 1]


def test_what_does_not_fit_slips_oldest_first():
    schedule = Schedule(units([5.0, 5.0, 5.0]))
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


def test_the_bound_counts_from_when_shorter_intervals_were_bought():
    schedule = Schedule(units([1.0] * 3, 64))
    schedule.tried = [100] * 3
    schedule.bought = Bought([1] * 3, [1.0] * 3, 3.0, False, 200)
    schedule.place(200)
    assert schedule.overdue(201) == []
    assert schedule.overdue(201 + schedule.bound(0)) == [0, 1, 2]


def test_what_is_bought_gives_each_rank_room_of_its_own():
    schedule = Schedule(units([1.0] * 4, 4), ranks=2)
    schedule.bought = Bought([1] * 4, [1.0] * 4, 1.0, False, 0)
    due = schedule.due(1, 1.0)
    assert sorted(schedule.owner[unit] for unit in due) == [0, 1]


def two_sided(blocks, period=16):
    """Units of blocks with two sides, which are due at steps of their own."""
    return [Unit(0, row, side, 0, 1.0 + row, period=period) for row in range(blocks) for side in (0, 1)]


@pytest.mark.parametrize(("period", "settled"), [(16, 4), (8, 2), (4, 1), (1, 1)])
def test_a_block_is_watched_four_times_an_interval_and_where_a_unit_becomes_due(period, settled):
    schedule, seen, due = Schedule(two_sided(5, period)), [], []
    for step in range(1, 401):
        schedule.due(step, math.inf)
        seen.append(schedule.watched(step + 1))
        due.append({(0, unit // 2) for unit, at in enumerate(schedule.next) if at == step + 1})
    for first, last in ((0, 30), (50, 70), (90, 150), (200, 400)):
        gap = max(min(2, settled), schedule.units[0].every(first + 1) // FOLDS)
        for row in range(5):
            # Both sides of a block are watched at the steps of one, and where the other becomes due.
            extra = sum((0, row) in new for new in due[first:last])
            times = sum((0, row) in found for found in seen[first:last])
            assert (last - first) / gap - 1 <= times <= (last - first) / gap + 1 + extra / 2
    for found, new in zip(seen, due, strict=True):
        assert new <= {*found}
        assert len(found) == len({*found})


def test_a_unit_that_slips_is_solved_from_what_was_seen_and_one_that_was_never_tried_is_watched():
    schedule = Schedule(two_sided(1))
    assert [schedule.watched(step) for step in (1, 2, 3)] == [[(0, 0)]] * 3
    for step in range(1, 300):
        schedule.due(step, math.inf)
    late = max(schedule.next) + 1  # Its slot has passed and nothing is solved.
    late += (schedule.slot[0] - late) % 4 == 0
    assert schedule.watched(late) == []
    schedule.next[1] = late
    assert schedule.watched(late) == [(0, 0)]


def test_where_intervals_are_bought_blocks_are_watched_as_often_as_was_paid_for():
    schedule = Schedule(two_sided(2))
    schedule.bought = Bought([2] * 4, [1.0] * 4, math.inf, False, 1)
    schedule.due(1, math.inf)
    assert schedule.watched(2) == schedule.watched(3) == [(0, 0), (0, 1)]
