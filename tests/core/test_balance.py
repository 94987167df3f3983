"""Ranks of unequal speed: what is measured, when it is believed, and what shares it makes."""

import copy
import math
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_so import SOAP, ConfigError, SecondOrder, attach
from lightning_so.contract.unit import Unit
from lightning_so.core.balance.balance import INTERVALS, LEAST, Balance
from lightning_so.core.balance.slowness import PARTS, measured, settled
from lightning_so.core.balance.times import SIZES, SolveTimes
from lightning_so.core.report import Report
from lightning_so.core.schedule.packing import owners, pack
from lightning_so.core.schedule.schedule import Rung, Schedule
from lightning_so.core.schedule.shares import shares
from lightning_so.core.schedule.units import Units
from tests.support.problems import Net
from tests.support.slowed import Told

NAN = math.nan


def two_sided(blocks, *, together=False, period=16):
    costs = (100.0, 100.0, 300.0, 400.0)
    return [
        Unit(0, b, s, 0, costs[(b + s) % 4], period=period, together=together) for b in range(blocks) for s in (0, 1)
    ]


def seconds(units, owner, slowness):
    found = [0.0] * len(slowness)
    for unit, rank in zip(units, owner, strict=True):
        found[rank] += unit.cost / unit.final * slowness[rank]
    return found


# ---------------------------------------------------------------- shares


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("slowness", [[1.0, 2.0], [1.0, 1.0, 1.0, 2.0], [0.5, 1.0, 1.0, 3.0], [2.0, 1.0, 1.0]])
def test_shares_take_equally_long(slowness, together):
    units = two_sided(24, together=together)
    schedule = Schedule(units, len(slowness))
    before, after = (seconds(units, each, slowness) for each in (schedule.owner, schedule.owners(slowness)))
    mean = sum(after) / len(after)
    assert max(after) <= 1.2 * mean
    assert max(before) > 1.25 * sum(before) / len(before)


def test_shares_leave_no_step_to_the_slow_rank():
    units, slowness = two_sided(48, period=8), [1.0, 2.0]
    slots = [unit.final for unit in units]
    slot = pack([unit.cost for unit in units], slots)

    def steps(owner):
        loads = [[0.0] * len(slowness) for _ in range(8)]
        for at, rank, unit in zip(slot, owner, units, strict=True):
            loads[at][rank] += unit.cost * slowness[rank]
        return sum(map(max, loads))

    ideal = sum(unit.cost for unit in units) / 1.5
    assert steps(shares(units, slot, slots, slowness)) <= 1.1 * ideal
    assert steps(owners(units, slot, slots, 2)) > 1.25 * ideal


@given(st.integers(1, 12), st.integers(1, 5), st.floats(0.125, 8.0))
def test_ranks_that_are_equally_slow_have_what_equal_ranks_have(blocks, ranks, slow):
    schedule = Schedule(two_sided(blocks), ranks)
    assert schedule.owners([slow] * ranks) == schedule.owner


@given(st.integers(1, 12), st.lists(st.floats(0.125, 8.0), min_size=1, max_size=5))
def test_units_of_a_block_whose_factors_are_in_one_place_stay_together(blocks, slowness):
    found = Schedule(two_sided(blocks, together=True), len(slowness)).owners(slowness)
    assert found[::2] == found[1::2]


# ---------------------------------------------------------------- what is measured


def test_a_slowness_is_told_apart_from_what_kinds_cost():
    kinds, slowness = [1.0, 10.0, 0.1, 4.0], [1.0, 2.0, 1.0, 0.5]
    table = [[kind * slow for kind in kinds] for slow in slowness]
    table[0][1] = table[2][2] = table[3][0] = NAN
    assert measured(table, [1.0] * 4) == pytest.approx(slowness, rel=1e-3)


def test_ranks_are_compared_by_way_of_others():
    table = [[1.0, NAN, NAN], [2.0, 10.0, NAN], [NAN, 5.0, 3.0], [NAN, NAN, 3.0]]
    assert measured(table, [1.0] * 4) == pytest.approx([1.0, 2.0, 1.0, 1.0], rel=0.05)


def test_a_rank_that_shares_no_kind_of_solve_stays_what_it_was():
    assert measured([[1.0, NAN], [2.0, NAN], [NAN, 7.0]], [1.0, 1.0, 1.0])[2] == pytest.approx(1.0, abs=0.5)
    assert measured([[NAN], [NAN]], [1.0, 2.0]) == [1.0, 2.0]


def test_half_of_two_ranks_is_the_slow_half():
    assert measured([[1.0], [2.0]], [1.0, 1.0]) == [1.0, 2.0]
    assert measured([[2.0], [1.0]], [1.0, 1.0]) == [2.0, 1.0]


@pytest.mark.parametrize(
    ("force", "last", "now", "then"),
    [(8, 2.1, 2.0, 16), (8, 1.0, 2.0, 8), (8, 2.0, 1.0, 8), (8, 1.24, 1.24, 8), (16, 1.0, 1.1, 9), (8, 0.01, 0.01, 1)],
)
def test_what_is_in_force_changes_where_two_rounds_agree(force, last, now, then):
    assert settled([force], [last], [now]) == [then]


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_noise_of_a_tenth_on_equal_ranks_changes_nothing(ranks):
    draw = random.Random(0)
    force, last = [PARTS] * ranks, [1.0] * ranks
    for _ in range(200):
        table = [[abs(draw.gauss(kind, 0.1 * kind)) for kind in (1.0, 3.0, 8.0)] for _ in range(ranks)]
        now = measured(table, [1.0] * ranks)
        force, last = settled(force, last, now), now
        assert force == [PARTS] * ranks


def test_times_are_means_of_a_unit_by_kind_and_size():
    ticks = iter([9.0, 9.0, *(tick for seconds in (4.0, 2.0, 6.0, 12.0) for tick in (0.0, seconds))])
    times = SolveTimes(Told(lambda: next(ticks)), [0, 0, 1])
    solve = times.around(lambda units, numbers, rung: numbers)
    assert solve(None, [0], Rung.PLAIN) == [0]  # the first allocates
    solve(None, [0], Rung.AFRESH)
    for _ in range(4):
        solve(None, [0], Rung.PLAIN)
    found = times.means()
    assert found[0] == 6.0
    assert len(found) == 2 * SIZES
    assert all(map(math.isnan, found[1:]))
    assert all(map(math.isnan, times.means()))  # of the round that is over nothing is left


def test_calls_of_several_units_are_apart_from_those_of_one():
    times = SolveTimes(Told(lambda: 6.0), [0] * 9)
    solve = times.around(lambda units, numbers, rung: numbers)
    for _ in range(4):
        solve(None, [0, 1, 2], Rung.QUICK)
    assert times.means()[2] == 2.0  # 3 or 4 in a call


# ---------------------------------------------------------------- rounds


class Lot:
    """A balance of two ranks that are told what they measure; nothing travels."""

    def __init__(self, monkeypatch, *, stays=False):
        model = Net()
        engine = attach(model, torch.optim.AdamW(model.parameters()), SOAP())
        for stack in engine.stacks if stays else ():
            stack.blocks[0].owner = 0
        self.units = Units.of(engine.stacks, 2)
        self.report, self.said, self.sent = Report(), [], []
        self.units.schedule.place(1)
        host = SimpleNamespace(team=SimpleNamespace(ranks=2, rank=0), params=engine.host.params)
        monkeypatch.setattr(
            "lightning_so.core.balance.balance.share_factors", lambda units, team, places: self.sent.append(places)
        )
        self.balance = Balance(self.units, host, self.report)
        self.table = [[1.0], [1.0]]
        self.balance.agree = lambda: self.table
        self.asked = 0

    def walk(self, steps):
        for step in steps:
            self.report.step = step
            self.balance.around(lambda *_: None, step, self.said.append)


def test_units_move_after_two_rounds_and_what_goes_with_them_is_sent_once(monkeypatch):
    lot = Lot(monkeypatch)
    before = [*lot.units.schedule.owner]
    lot.table = [[1.0], [2.0]]
    second = LEAST + max(LEAST, INTERVALS * max(lot.units.schedule.every))
    lot.walk(range(1, second))
    assert lot.units.schedule.owner == before
    assert lot.balance.scalars()["so/slowest_rank"] == 2.0
    lot.walk(range(second, second + 100))
    moved = [n for n, (was, now) in enumerate(zip(before, lot.units.schedule.owner, strict=True)) if was != now]
    assert moved
    assert lot.report.moved == len(moved) == lot.balance.scalars()["so/moved_units"]
    assert lot.sent == [{(lot.units[n].stack, lot.units[n].row) for n in moved}]
    assert len(lot.said) == 1
    lot.table = [[1.0], [1.0]]
    lot.walk(range(second + 100, second + 200))
    assert lot.units.schedule.owner == before


def test_owners_of_sharded_blocks_stay_and_the_slow_rank_is_named(monkeypatch):
    lot = Lot(monkeypatch, stays=True)
    lot.table = [[1.0], [4.0]]
    before = [*lot.units.schedule.owner]
    lot.walk(range(1, 200))
    assert lot.units.schedule.owner == before
    assert not lot.sent
    assert "blocks stay with their owners" in lot.said[0]
    assert "owners stay" in lot.balance.told


def test_what_is_in_force_is_saved_and_fits_as_many_ranks_alone(monkeypatch):
    lot, other = Lot(monkeypatch), Lot(monkeypatch)
    lot.table = [[1.0], [2.0]]
    lot.walk(range(1, 200))
    state = copy.deepcopy(lot.balance.state_dict())
    other.balance.load_state_dict(state)
    assert other.units.schedule.owner == lot.units.schedule.owner
    assert other.balance.state_dict() == state
    third = Lot(monkeypatch)
    before = [*third.units.schedule.owner]
    third.balance.load_state_dict({**state, "slowness": [8, 16, 8], "last": [1.0, 2.0, 1.0]})
    assert third.balance.slowness == [PARTS, PARTS]
    assert third.units.schedule.owner == before


@pytest.mark.parametrize("arguments", [{"balance": 2}, {"balance": True, "max_overhead": 0.1}])
def test_what_cannot_be_is_named(arguments):
    with pytest.raises(ConfigError, match="balance"):
        SecondOrder(**arguments)
