"""`max_overhead`: an engine on a simulated machine takes the share of time that it was given."""

import copy
import statistics
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

from lightning_so import KFAC, SOAP, AdaHessian, ConfigError, Muon, Overhead, SecondOrder, Synchronous, attach
from lightning_so.callbacks.engines import together
from lightning_so.contract.block import Use
from lightning_so.core.overhead.controller import FIRST, LAST
from lightning_so.core.overhead.meter import Meter
from lightning_so.core.schedule import budget
from lightning_so.core.schedule.bought import Bought
from tests.support import machine as on
from tests.support.daily import daily, one_in
from tests.support.machine import Machine, attached
from tests.support.problems import Net

END = LAST + 40
#: Steps before which a run stops: while the training alone is measured, while ours is, and behind the choice.
STOPS = (5, 12, 30, LAST + 5)


@pytest.fixture
def patch(monkeypatch):
    return monkeypatch


# ---------------------------------------------------------------- the share


@pytest.mark.parametrize("share", one_in(2, [0.08, 0.15, 0.2, 0.28]))
def test_the_share_is_taken_and_no_step_is_much_longer_than_the_median(patch, share):
    machine = Machine()
    net, optimizer, engine, told = attached(patch, machine, share=share)
    machine.train(net, optimizer, range(END))
    assert machine.share(32) == pytest.approx(share, abs=0.02)
    assert engine.parts.overhead.choice.predicted == pytest.approx(share, abs=0.02)
    passes = machine.passes[FIRST + 1 :]
    assert max(passes) <= 1.15 * statistics.median(passes)
    assert len(told) == 2
    assert "the training's own step takes 1e+03 ms, ours 50 ms" in told[-1]


def test_a_solve_that_is_too_dear_for_a_step_is_made_alone(patch):
    machine = Machine(solve=0.4)
    net, optimizer, engine, told = attached(patch, machine, share=0.15)
    machine.train(net, optimizer, range(END))
    assert machine.share(64) <= 0.17
    assert "the largest step 1.38 of the median one" in told[-1]
    assert max(machine.passes[FIRST + 1 :]) <= 1.05 + 0.4 + 1e-9
    assert engine.parts.overhead.choice.largest > 1.15


def test_bases_that_were_solved_seldom_may_be_solved_often_again(patch):
    machine = Machine(solve=0.4)
    net, optimizer, engine, _ = attached(patch, machine, share=0.06)
    with pytest.warns(UserWarning, match="cannot be kept"):
        machine.train(net, optimizer, range(END))
    assert max(engine.parts.units.schedule.every) > 64
    overhead = engine.parts.overhead
    state = copy.deepcopy(overhead.state_dict())
    state["timings"][5:] = [0.0001] * len(state["timings"][5:])
    engine.report.step += 100
    state["progress"]["chosen"] = engine.report.step
    overhead.load_state_dict(state, engine.report.step)
    machine.train(net, optimizer, range(END, END + 10))  # no TrustError: the bound counts from the new choice
    assert max(engine.parts.units.schedule.every) == 1


def test_solves_of_a_step_fit_into_the_room_that_was_bought(patch):
    *_, engine, _ = attached(patch)
    parts, count = engine.parts, len(engine.parts.units)
    parts.roster.live = [[*range(len(stack.blocks))] for stack in parts.stacks]
    parts.units.schedule.bought = Bought([1] * count, [1.0] * count, 2.0, False, 0)
    assert len(budget.due(parts.units, parts.roster, parts.host, parts.budget, 20, entering=False)) == 2 < count


def test_without_the_argument_nothing_is_measured():
    net = Net()
    engine = attach(net, torch.optim.AdamW(net.parameters()), on.METHOD)
    assert engine.parts.overhead is None
    assert not isinstance(engine.stopwatch, Meter)
    assert "overhead" not in engine.state_dict()


@pytest.mark.slow
def test_what_was_foretold_and_what_was_measured_is_logged(patch):
    machine = Machine()
    net, optimizer, engine, _ = attached(patch, machine, share=0.2)
    assert engine.parts.overhead.scalars() == {"so/overhead_predicted": 0.0, "so/overhead_measured": 0.0}
    machine.train(net, optimizer, range(100))
    engine.parts.overhead.scalars()
    machine.train(net, optimizer, range(100, 132))
    found = engine.parts.overhead.scalars()
    assert found["so/overhead_measured"] == pytest.approx(found["so/overhead_predicted"], abs=0.02)


def test_rows_are_thinned_from_the_start_and_by_choice(patch):
    machine = Machine()
    net, optimizer, engine, _ = attached(patch, machine, KFAC(period=4), share=0.5)
    assert {stack.stats.thinning for stack in engine.stacks} == {16}
    machine.train(net, optimizer, range(FIRST + 2))
    assert {stack.stats.thinning for stack in engine.stacks} == {engine.parts.overhead.choice.thinning} == {1}


@pytest.mark.parametrize(("thinning", "rows"), [(1, 512), (2, 256), (16, 32)])
def test_thinned_rows_are_fewer(thinning, rows):
    net = nn.Sequential(nn.Linear(5, 512))
    engine = attach(net, torch.optim.AdamW(net.parameters()), method := KFAC())
    (stack,) = engine.stacks
    method.thin(stack.stats, thinning)
    use = Use(torch.ones(4096, 5), torch.ones(4096, 512), 1.0, 4096.0, 3)
    with mock.patch("lightning_so.linalg.sides.Side.add") as add:
        method.collect(stack.stats, 0, stack.blocks[0], use)
    for call in add.call_args_list:
        assert call.args[1].shape[1] == rows
        assert call.args[2] == pytest.approx(4096 / rows)


# ---------------------------------------------------------------- what cannot be kept


def test_a_share_below_the_steady_work_is_named_with_what_is_nearer(patch):
    machine = Machine(steady=0.2)
    net, optimizer, engine, _ = attached(patch, machine, share=0.1)
    with pytest.warns(UserWarning, match="max_overhead=0.1.*SOAP's steady work alone is 20 %.*raise max_overhead to 0"):
        machine.train(net, optimizer, range(END))
    assert machine.share(32) == pytest.approx(engine.parts.overhead.choice.floor, abs=0.02)
    assert set(engine.parts.units.schedule.every) == {16 * 8}


def test_strictly_asked_it_is_refused(patch):
    machine = Machine(steady=0.2)
    net, optimizer, _, _ = attached(patch, machine, share=Overhead(0.1, strict=True))
    with pytest.raises(ConfigError, match=r"max_overhead=0.1\) cannot be kept.*Muon\(\), modelled at"):
        machine.train(net, optimizer, range(END))
    assert len(machine.passes) >= LAST - 1
    # Nothing is left hidden.
    assert all(param.abs().sum() > 0 for param in net.parameters())


def test_a_method_without_solves_says_what_it_takes(patch):
    machine = Machine(steady=0.2)
    net, optimizer, _, told = attached(patch, machine, Muon(), share=0.3)
    machine.train(net, optimizer, range(FIRST + 2))
    assert "20 %, and there is nothing to solve" in told[0]


@pytest.mark.parametrize("share", [0, 1, 1.0, -0.1, True, "0.1", float("nan")])
def test_no_share_is_an_error_by_name(share):
    with pytest.raises(ConfigError, match="max_overhead="):
        SecondOrder(SOAP(), max_overhead=share)
    net = Net()
    with pytest.raises(ConfigError, match="max_overhead="):
        attach(net, torch.optim.AdamW(net.parameters()), SOAP(), max_overhead=share)
    with pytest.raises(ConfigError, match="max_overhead="):
        Overhead(share)


def test_a_burst_is_refused():
    net = Net()
    with pytest.raises(ConfigError, match=r"max_overhead=0.1.*Synchronous"):
        attach(net, torch.optim.AdamW(net.parameters()), SOAP(schedule=Synchronous()), max_overhead=0.1)


def test_methods_on_the_whole_vector_refuse_it():
    net = Net()
    with pytest.raises(ConfigError, match=r"AdaHessian.*no options but product"):
        attach(net, torch.optim.AdamW(net.parameters()), AdaHessian(), max_overhead=0.1)


def test_a_loaded_machine_is_noticed(patch):
    machine = Machine()
    net, optimizer, _, _ = attached(patch, machine, Muon())
    machine.train(net, optimizer, range(FIRST))
    machine.own = 2.0
    with pytest.warns(UserWarning, match=r"1e\+03 ms in one round of measuring and 2e\+03 ms in the next, 100 % apart"):
        machine.train(net, optimizer, range(FIRST, 20))


# ---------------------------------------------------------------- what is no step of the training


def test_steps_that_are_left_out_and_what_lies_between_steps_do_not_count(patch):
    machine = Machine()
    net, optimizer, engine, _ = attached(patch, machine)

    def odd(step):
        if step % 3 == 1:  # validation
            engine.stopwatch.leave()
            machine.now += 7.0
            engine.stopwatch.come_back()
        if step == 5:  # a gradient that is not finite
            machine.now += 3.0
            net.wide.bias.grad.fill_(torch.nan)

    laps = []
    patch.setattr(
        engine.parts.overhead,
        "consider",
        lambda *_: (laps.extend(engine.stopwatch.laps), engine.stopwatch.laps.clear()),
    )
    machine.train(net, optimizer, range(12), odd)
    assert engine.report.skipped == 1
    own = [lap.own for lap in laps]
    # The lap of the skipped step is void; that before it has its three seconds.
    assert own.count(pytest.approx(1.0)) == len(own) - 1 == 9


def test_micro_batches_are_of_one_step(patch):
    machine = Machine()
    net, optimizer, engine, _ = attached(patch, machine)
    machine.train(net, optimizer, range(12), lambda _: setattr(machine, "now", machine.now + 3.0))
    assert engine.parts.overhead._timings.own == pytest.approx(4.0)


def test_the_host_waits_for_no_moment():
    class Late(Machine):
        known = -1.0

        def seconds(self, begin, end):
            return end - begin if end <= self.known else None

    clock = Late()
    meter = Meter(clock)
    for _ in range(3):
        meter.lap()
        clock.now += 1.0
        with meter.stage("act"):
            clock.now += 0.5
    assert not meter.laps
    clock.known = 1.5
    meter.lap()
    assert [(lap.own, lap.steady) for lap in meter.laps] == [(1.0, 0.5)]
    clock.known = 9.0
    meter.lap()
    assert len(meter.laps) == 4


# ---------------------------------------------------------------- two optimizers, several ranks


@pytest.mark.slow
def test_engines_of_one_training_share_the_budget_and_none_is_the_others_own_time(patch):
    machine = Machine(solve=0.1)
    first, second = (attached(patch, machine, share=0.3) for _ in range(2))
    engines = [first[2], second[2]]
    together(engines)
    for step in range(END):
        for net, optimizer, *_ in (first, second):
            machine.train(net, optimizer, range(step, step + 1))
    passes = machine.passes[-64:]
    for engine in engines:
        assert engine.parts.overhead._timings.own == pytest.approx(2.0)
        assert engine.parts.overhead.choice.predicted <= 0.15
    assert sum(passes) / len(passes) == pytest.approx(1.3, abs=0.02)


def test_ranks_with_different_clocks_choose_equally(two):
    (chosen, weights), (others, theirs) = two.run(on.ranks, [0.04, 0.4])
    assert chosen[-1] is not None
    assert chosen == others
    assert chosen[-1].costs[0] == pytest.approx(0.04)
    for name, value in weights.items():
        assert torch.equal(value, theirs[name])


# ---------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def straight():
    """A run that does not stop, and what was saved on its way."""
    with pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        whole, saved, begin = Machine(), {}, 0
        net, optimizer, engine, _ = attached(patch, whole)
        for at in STOPS:
            whole.train(net, optimizer, range(begin, at))
            saved[at] = copy.deepcopy((net.state_dict(), optimizer.state_dict(), engine.state_dict()))
            begin = at
        whole.train(net, optimizer, range(begin, END))
    return net, engine, saved


@pytest.mark.parametrize("at", daily(STOPS, 5, LAST + 5))
def test_a_run_that_is_resumed_goes_on_bit_for_bit(patch, straight, at):
    net, engine, saved = straight[0], straight[1], copy.deepcopy(straight[2][at])
    rest = Machine()
    other, its, again, _ = attached(patch, rest)
    other.load_state_dict(saved[0])
    its.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    assert again.parts.overhead.state_dict() == saved[2]["overhead"]
    rest.train(other, its, range(at, END))
    for key, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    if at > LAST:
        assert again.parts.overhead.choice == engine.parts.overhead.choice
        assert again.parts.units.schedule.next == engine.parts.units.schedule.next


@pytest.mark.slow
def test_another_device_is_measured_anew_and_that_is_said(patch):
    machine = Machine()
    net, optimizer, engine, _ = attached(patch, machine)
    machine.train(net, optimizer, range(END))
    state = copy.deepcopy(engine.state_dict())
    state["overhead"]["device"] = "another device"
    slow = Machine(solve=0.4)
    other, its, again, told = attached(patch, slow)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    its.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.load_state_dict(state)
    before = again.parts.overhead.choice
    assert before.costs[0] == pytest.approx(0.04)  # until there is another
    slow.train(other, its, range(END, END + FIRST + 2))
    assert any("of another device, and this is" in text for text in told)
    assert again.parts.overhead.choice.costs[0] == pytest.approx(0.4)


@pytest.mark.parametrize("other_units", daily([False, True], True))
def test_a_file_without_timings_of_these_units_is_measured_from_its_step_on(patch, other_units):
    machine = Machine()
    net, optimizer, engine, _ = attached(patch, machine)
    machine.train(net, optimizer, range(END))
    state = copy.deepcopy(engine.state_dict())
    state["report"]["step"] = 500
    if other_units:
        assert state["overhead"]["progress"]["settled"]
        state["overhead"]["timings"].append(0.1)
    else:
        del state["overhead"]
    engine.load_state_dict(state)
    assert vars(engine.parts.overhead._at) == {**vars(engine.parts.overhead._at), "since": 500, "coming": 500 + FIRST}


def test_the_callback_takes_it(patch):
    callback = SecondOrder(SOAP(), max_overhead=0.1)
    assert copy.deepcopy(callback).options.overhead == Overhead(0.1)
    engines = callback.engines = [SimpleNamespace(stopwatch=Meter(Machine()))]
    meter, clock = engines[0].stopwatch, engines[0].stopwatch.timer
    meter.lap()
    callback.on_validation_start(None, None)
    clock.now += 5.0
    callback.on_validation_end(None, None)
    clock.now += 1.0
    meter.lap()
    assert meter.laps[0].own == 1.0
