"""In which ways a device computes: measured where it is none of a CPU's, the same on all ranks, kept by files."""

import copy
import json
import warnings
from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from lightning_so import EKFAC, KFAC, OGR, SOAP, ConfigError, Mixture, Muon, SecondOrder, Ways, attach
from lightning_so.contract.ways import WAYS
from lightning_so.core import measure
from lightning_so.core.checkpoint import checkpoint
from lightning_so.core.device import alternatives, choose
from lightning_so.core.device.choose import USUAL
from lightning_so.core.schedule.schedule import Rung, Schedule
from lightning_so.core.schedule.units import Units
from lightning_so.linalg import polar
from tests.support.operations import transformer
from tests.support.problems import Net, batch

CHOLESKY = Ways(refresh="cholesky")
FAST = Ways("cholesky", "fp16", "tf32", "padded")


def trained(method, steps=12, dtype=torch.float32, device="cpu", **options):
    torch.manual_seed(0)
    net = Net(dtype).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    engine = attach(net, optimizer, method, **options)
    walk(net, optimizer, engine, range(steps), dtype, device)
    return net, optimizer, engine


def walk(net, optimizer, engine, steps, dtype=torch.float32, device="cpu"):
    for step in steps:
        x, y = (part.to(device) for part in batch(step, dtype))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        engine.before_backward(loss)
        loss.backward()
        optimizer.step()


def faster(seconds):
    """A device that is not a CPU, on which ways take these seconds: of each field, that of the usual and the other."""

    def timed(what, size, device):
        usual, other = WAYS[what][:2]
        return {usual: 1.0, other: seconds}

    return mock.patch.multiple(choose, measured=lambda device: True, timed=timed)


# ---------------------------------------------------------------- how long it takes


class Timed:
    """A clock that advances by what each work takes; the second one of each kind is that of a disturbed machine."""

    def __init__(self, seconds) -> None:
        self.now, self.seconds, self.order = 0.0, seconds, []

    def __call__(self):
        return self.now

    def work(self, name):
        def run():
            self.order.append(name)
            self.now += self.seconds[name] * (50 if self.order.count(name) in (1, 4) else 1)

        return run


def test_works_take_turns_and_medians_do_not_see_a_disturbance():
    clock = Timed({"a": 1.0, "b": 3.0})
    found = measure.medians({name: clock.work(name) for name in "ab"}, clock)
    assert found == {"a": 1.0, "b": 3.0}
    assert clock.order == ["a", "b"] * (measure.WARM + measure.ROUNDS)


def test_what_a_device_cannot_do_is_left_out():
    def fails():
        raise NotImplementedError("no such kernel")

    clock = Timed({"a": 1.0})
    assert measure.medians({"a": clock.work("a"), "b": fails}, clock) == {"a": 1.0}
    assert measure.faster({"b": 3.0}, "a", 0.8) == "b"
    assert measure.faster({}, "a", 0.8) == "a"


@pytest.mark.parametrize(("seconds", "found"), [(1.0, "a"), (0.81, "a"), (0.79, "b"), (2.0, "a")])
def test_another_way_must_be_well_faster(seconds, found):
    assert measure.faster({"a": 1.0, "b": seconds}, "a", 0.8) == found


def test_every_way_can_be_timed_and_draws_nothing():
    before = torch.get_rng_state()
    for what, names in WAYS.items():
        works = alternatives.ways_of(what, ((2, 8, 12), (3, 10, 6)), torch.device("cpu"))
        assert set(works) == set(names[:2])
        assert all(
            seconds > 0 for seconds in measure.medians(works, measure.waiting_clock(torch.device("cpu"))).values()
        )
    assert torch.equal(torch.get_rng_state(), before)


def test_sizes_are_those_of_which_there_is_most():
    def of(method, width=64):
        model = transformer(2, width=width)
        engine = attach(model, torch.optim.AdamW(model.parameters()), method)
        return alternatives.sizes(engine.parts.units, engine.host)

    # Small ones are worth a call together; of large ones, most matrices would be zeros.
    bent = {"polar": ((4, 64, 64),), "padding": ((8, 64, 64), (2, 256, 64), (2, 64, 256))}
    assert of(SOAP()) == {"refresh": ((2, 256, 256),), "rotation": ((2, 256, 64),), **bent}
    assert of(Muon()) == bent
    assert of(Muon(), width=512) == {"polar": ((4, 512, 512),), "padding": ((2, 2048, 512), (2, 512, 2048))}
    # What is computed in float64 is not looked at.
    double = trained(SOAP(), 0, torch.float64)[2]
    assert set(alternatives.sizes(double.parts.units, double.host)) == set()


# ---------------------------------------------------------------- what is chosen


def test_a_cpu_is_not_measured():
    with mock.patch.object(choose, "timed", side_effect=AssertionError):
        _, _, engine = trained(SOAP(start=2, period=2))
    assert engine.parts.chosen.ways == USUAL
    assert engine.plan.ways == ""
    assert all(stack.stats.ways == USUAL for stack in engine.stacks)


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, FAST), (0.9, USUAL)])
def test_a_device_computes_in_the_ways_it_is_faster_in(seconds, expected):
    with faster(seconds):
        _, _, engine = trained(SOAP(start=2, period=2), 1)
    assert engine.parts.chosen.ways == expected
    assert all(stack.stats.ways == expected for stack in engine.stacks)
    said = "bases by Cholesky (householder 1e+03 ms, cholesky 5e+02 ms)" if expected == FAST else "bases by Householder"
    assert said in str(engine.plan)


def on_a_rank(steps):
    """Two ranks whose devices differ: the other's is never asked. Ways, weights and state."""
    rank = dist.get_rank()
    with faster(0.5) if rank == 0 else mock.patch.object(choose, "timed", side_effect=AssertionError):
        net, _, engine = trained(SOAP(start=4, period=2), steps)
    return engine.parts.chosen, net.state_dict(), engine.state_dict()["ways"], str(engine.plan)


def test_all_ranks_do_as_the_first_one_says(two):
    (chosen, weights, state, plan), (other, theirs, again, printed) = two.run(on_a_rank, 16)
    assert chosen == other
    assert (chosen.ways, state, plan) == (FAST, again, printed)
    alone, _, _ = trained(SOAP(start=4, period=2), 16, ways=FAST)
    for name, weight in alone.state_dict().items():
        assert torch.equal(weights[name], theirs[name])
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-4)


def test_a_rank_that_has_nothing_to_compute_in_ways_takes_part():
    """As one whose rows are none, with sharding="local": the others wait for it."""
    _, _, engine = trained(SOAP(), 0)
    said = json.dumps([{"device": "theirs", **vars(FAST)}, {}]).encode()
    world = mock.Mock(rank=1, ranks=2)
    world.gather.return_value = [torch.tensor(list(said), dtype=torch.uint8)]
    found = choose.choose(Units.of([], 2), replace(engine.host, world=world), Ways())
    (mine, sizes), _ = world.gather.call_args
    assert (mine.numel(), sizes) == (0, [choose.WIRE, 0])
    assert (found.ways, found.device) == (FAST, "theirs")


def test_what_is_asked_for_is_not_measured():
    with faster(0.5):
        _, _, engine = trained(SOAP(), 1, ways=Ways(refresh="householder", rotation="fp32"))
    assert engine.parts.chosen.ways == Ways("householder", "fp16", "fp32", "padded")
    assert set(engine.parts.chosen.seconds) == {"polar", "padding"}


def test_a_method_that_has_no_ways_finds_out_nothing():
    with faster(0.5):
        _, _, engine = trained(KFAC(period=2), 1)
    assert engine.parts.chosen.device == ""
    assert engine.plan.ways == ""


def test_wrong_ways_are_refused():
    with pytest.raises(ConfigError, match=r"Ways\(polar='fp8'\): polar must be one of \[None, 'fp32', 'fp16'\]"):
        Ways(polar="fp8")
    with pytest.raises(ConfigError, match=r"Ways\(padding=True\): padding must be one of \[None, 'apart', 'padded'\]"):
        Ways(padding=True)
    with pytest.raises(ConfigError, match="takes no options but product"):
        attach(net := Net(), torch.optim.SGD(net.parameters(), lr=0.1), OGR(), ways=FAST)


def test_a_method_object_is_shared_and_not_changed():
    method = SOAP(start=2, period=2)
    engines = [trained(method, 4, ways=ways)[2] for ways in (CHOLESKY, None)]
    assert [engine.stacks[0].stats.ways.refresh for engine in engines] == ["cholesky", "householder"]
    assert method == SOAP(start=2, period=2)


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-10), (torch.float32, 2e-3)], ids=str)
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("method", [SOAP(start=4, period=2), EKFAC(start=4, period=2)], ids=str)
def test_cholesky_trains_as_householder_does(method, lag, dtype, near):
    expected, _, plain = trained(method, 24, dtype, lag=lag)
    called = []
    quickly = type(method).solve_quickly

    def solve_quickly(self, asked):
        called.append(len(asked))
        return quickly(self, asked)

    with mock.patch.object(type(method), "solve_quickly", solve_quickly):
        found, _, engine = trained(method, 24, dtype, lag=lag, ways=CHOLESKY)
    assert sum(called) > 0
    # The first solve of each is cold.
    assert sum(called) <= engine.report.solved_here - len(engine.parts.units)
    assert (engine.report.solves, engine.report.failures) == (plain.report.solves, 0)
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=near)


def test_without_a_ridge_bases_are_householders():
    with mock.patch.object(SOAP, "solve_quickly", side_effect=AssertionError):
        trained(SOAP(start=2, period=2, ridge=0.0), 8, ways=CHOLESKY)


@pytest.mark.parametrize("method", [Muon(), SOAP(start=100, period=2), EKFAC(start=100, period=2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_polar_factors_are_computed_in_the_way_that_was_chosen(method, dtype):
    seen, plain = [], polar.polar

    def noted(X, *, steps=5, precision=None):
        seen.append(precision)
        return plain(X, steps=steps, precision=precision)

    with mock.patch.object(polar, "polar", noted):
        net, _, _ = trained(method, 4, dtype, ways=Ways(polar="fp16"))
    # What is more than float32 was asked for by the model.
    assert set(seen) == {torch.float16 if dtype is torch.float32 else None}
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(("precision", "used"), [("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_precision_that_a_method_was_given_is_its_own(precision, used):
    with mock.patch.object(polar, "polar", side_effect=polar.polar) as called:
        trained(Muon(precision=precision), 2, ways=Ways(polar="fp16" if used is None else "fp32"))
    assert {call.kwargs["precision"] for call in called.call_args_list} == {used}


@pytest.mark.parametrize("method", [SOAP(start=4, period=2), EKFAC(start=4, period=2), Muon()], ids=str)
def test_every_update_is_that_of_a_float64_reference(method):
    _, _, engine = trained(method, 12, ways=FAST, verify_every=1)
    assert engine.report.verified == 12
    assert engine.report.deviation < 0.02


# ---------------------------------------------------------------- the ladder


def test_a_failed_solve_climbs_one_rung_and_a_good_one_comes_down():
    schedule = Schedule([mock.Mock(cost=1.0, final=4, staggered=True, together=False)])
    assert schedule.rung == [Rung.PLAIN]  # cold
    schedule.record(0, good=True, rung=Rung.PLAIN)
    assert schedule.rung == [Rung.QUICK]
    for rung in (Rung.QUICK, Rung.PLAIN):
        schedule.tried[0] = 7
        schedule.record(0, good=False, rung=rung)
        assert schedule.rung == [rung + 1]
        assert (schedule.next[0], schedule.failed[0]) == (8, 0)
    schedule.record(0, good=False, rung=Rung.QUICK)  # read late
    assert schedule.rung == [Rung.AFRESH]
    schedule.record(0, good=False, rung=Rung.AFRESH)
    assert (schedule.rung, schedule.failed) == ([Rung.AFRESH], [1])
    schedule.record(0, good=True, rung=Rung.AFRESH)
    assert (schedule.rung, schedule.failed) == ([Rung.QUICK], [0])
    assert all(type(number) is int for number in schedule.history(0))  # as files must have them


def failing(quickly, seen):
    """Quick solves fail; it is noted by what units are solved."""
    plain, afresh = SOAP.solve, SOAP.solve_afresh

    def solve_quickly(self, asked):
        seen.append(("quick", len(asked)))
        found = quickly(self, asked)
        return replace(found, good=torch.zeros_like(found.good), value=found.value * torch.nan)

    def solve(self, asked):
        seen.append(("plain", len(asked)))
        return plain(self, asked)

    def solve_afresh(self, stats, unit):
        seen.append(("afresh", 1))
        return afresh(self, stats, unit)

    return mock.patch.multiple(SOAP, solve=solve, solve_quickly=solve_quickly, solve_afresh=solve_afresh)


@pytest.mark.parametrize("lag", [0, 1])
def test_what_cholesky_could_not_is_householders_at_the_next_step(lag):
    net, optimizer, engine = trained(SOAP(start=2, period=8), 30, ways=CHOLESKY, lag=lag)
    bases = [Q.clone() for stack in engine.stacks for name, Q in stack.tensors() if "basis" in name]
    seen = []
    with failing(SOAP.solve_quickly, seen):
        walk(net, optimizer, engine, range(30, 60))
    kinds = [kind for kind, _ in seen]
    assert {"quick", "plain"} == set(kinds)
    counts = {kind: sum(count for name, count in seen if name == kind) for kind in set(kinds)}
    assert abs(counts["quick"] - counts["plain"]) <= len(engine.parts.units)
    assert engine.report.failures == engine.report.cooled == 0
    assert engine.report.retries >= counts["plain"]
    now = [Q for stack in engine.stacks for name, Q in stack.tensors() if "basis" in name]
    for before, after in zip(bases, now, strict=True):
        assert after.isfinite().all()
        assert not torch.equal(before, after)
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("stop", [31, 34])
def test_a_run_that_is_resumed_is_on_the_same_rungs(stop, lag):
    ends = []
    for stopped in (False, True):
        method = SOAP(start=2, period=2)
        net, optimizer, engine = trained(method, 30, ways=CHOLESKY, lag=lag)
        with failing(SOAP.solve_quickly, []):
            walk(net, optimizer, engine, range(30, stop))
            if stopped:
                kept = copy.deepcopy((net.state_dict(), optimizer.state_dict(), engine.state_dict()))
                net, optimizer, engine = trained(method, 0, ways=CHOLESKY, lag=lag)
                for part, state in zip((net, optimizer, engine), kept, strict=True):
                    part.load_state_dict(state)
            walk(net, optimizer, engine, range(stop, 40))
        ends.append((engine.report.retries, engine.parts.units.schedule.rung, [*net.parameters()]))
    (retries, rungs, weights), (again, resumed, others) = ends
    assert (retries, rungs) == (again, resumed)
    assert all(map(torch.equal, weights, others))


# ---------------------------------------------------------------- files


def resumed(state, **options):
    """A new training of the one whose engine's and optimizer's states these are."""
    _, optimizer, engine = trained(SOAP(start=2, period=2), 0, **options)
    optimizer.load_state_dict(state[1])
    engine.load_state_dict(state[0])
    return engine


def saved(engine, optimizer):
    return copy.deepcopy((engine.state_dict(), optimizer.state_dict()))


@pytest.mark.parametrize("kind", checkpoint.KINDS)
def test_a_resumed_run_keeps_the_ways_of_its_file_and_says_so(kind):
    with faster(0.5):
        _, optimizer, engine = trained(SOAP(start=2, period=2))
    state = checkpoint.write(engine.parts, kind)
    _, base, other = trained(SOAP(start=2, period=2), 0)
    base.load_state_dict(optimizer.state_dict())
    with pytest.warns(UserWarning, match="chosen for cpu by the state that was loaded: bases by Cholesky.*had chosen"):
        checkpoint.read(other.parts, state)
    assert other.parts.chosen.ways == FAST
    assert all(stack.stats.ways == FAST for stack in other.stacks)
    assert "by the state that was loaded" in str(other.plan)
    assert checkpoint.write(other.parts, kind)["ways"] == state["ways"]


def test_what_was_asked_for_comes_before_the_file():
    with faster(0.5):
        _, optimizer, engine = trained(SOAP(start=2, period=2))
    with pytest.warns(UserWarning, match="had chosen"):
        other = resumed(saved(engine, optimizer), ways=Ways(polar="fp32"))
    assert other.parts.chosen.ways == replace(FAST, polar="fp32")


def test_the_same_ways_are_not_worth_a_word():
    _, optimizer, engine = trained(SOAP(start=2, period=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = resumed(saved(engine, optimizer))
    assert not other.parts.chosen.kept


def test_files_of_before_are_read():
    _, optimizer, engine = trained(SOAP(start=2, period=2))
    state, base = saved(engine, optimizer)
    del state["ways"]
    state["units"] = {key: [*history[:5], int(history[5] > 0)] for key, history in state["units"].items()}
    with faster(0.5):
        other = resumed((state, base))
    assert other.parts.chosen.ways == FAST
    assert set(other.parts.units.schedule.rung) == {Rung.PLAIN}


def test_a_state_of_muon_in_fp32_is_one_of_today():
    state = trained(Muon())[2].state_dict()
    assert "precision='auto'" in state["method"]
    state["method"] = state["method"].replace("precision='auto'", "precision='fp32'")
    trained(Muon(), 0)[2].load_state_dict(state)


def test_parameters_that_are_added_are_computed_in_the_same_ways():
    with faster(0.5):
        net, optimizer, engine = trained(SOAP(start=2, period=2))
    more = torch.nn.Linear(5, 4)
    net.more = more
    optimizer.add_param_group({"params": more.parameters()})
    engine.follow()
    assert engine.parts.chosen.ways == FAST
    assert all(stack.stats.ways == FAST for stack in engine.stacks)


def test_a_mixture_has_one_choice_for_all():
    with faster(0.5):
        _, _, engine = trained(Mixture({"tall.*": Muon(), "wide.*": KFAC(period=2), "*": SOAP(start=2, period=2)}))
    ways = [stack.stats.ways for stack in engine.stacks if stack.versatile is not None]
    assert ways == [FAST] * 2


def test_the_callback_hands_them_on():
    assert SecondOrder(SOAP(), ways=CHOLESKY).options.ways == CHOLESKY
    assert SecondOrder(SOAP()).options.ways == Ways()
