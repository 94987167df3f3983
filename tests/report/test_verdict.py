"""Injected faults are found and named, and healthy runs are accused of nothing."""

import math
import random

import pytest

from lightning_so.report.run import Run
from lightning_so.report.verdict.finding import BAD, NOTE, WARN
from lightning_so.report.verdict.judge import judge
from lightning_so.report.verdict.levels import apart
from tests.support import recorded
from tests.support.daily import one_in

LAYER = "blocks.1.mlp.0"
WEIGHT = "blocks.0.attn.out.weight"


def found(recordings) -> list[tuple[str, str, str]]:
    return [(each.severity, each.kind, each.where) for each in judge(Run("run", recordings)).findings]


def only(recordings):
    (one,) = judge(Run("run", recordings)).findings
    assert all((one.where, one.what, one.why, one.move))
    return one


# ------------------------------------------------------------------ healthy
HEALTHY = [
    {},
    {"ranks": 4, "steps": 2000},
    {"ranks": 8, "steps": 300, "sharded": True},
    {"method": None},
    {"method": None, "optimizer": "SGD"},
    {"steps": 30},
    {"steps": 5000, "seed": 1},
    {"shift": 100.0},
    {"shift": -3.0},
    {"shift": -1.6, "steps": 1500},
    {"names": ["only.weight"]},
]


@pytest.mark.parametrize("options", HEALTHY)
@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_is_accused_of_nothing(options, seed):
    verdict = judge(Run("run", recorded.healthy(**{"seed": seed, **options})))
    assert verdict.findings == []
    assert any("losses" in said for said in verdict.good)
    assert any("No dead layer among 2 over" in said for said in verdict.good)


COURSES = {
    "orders of magnitude": lambda step, draw: 10 ** (1 - 6 * step / 1000 + 0.1 * draw),
    "noise of small batches": lambda step, draw: 2 + math.exp(-step / 100) + 0.4 * draw,
    "heavy tails": lambda step, draw: 1 + math.exp(-step / 200) + 0.05 * math.exp(0.9 * draw),
    "flat": lambda step, draw: 2.3 + 0.02 * draw,
    "below zero": lambda step, draw: -step / 100 + 0.5 * draw,
    "through zero": lambda step, draw: 1 - step / 200 + 0.05 * draw,
    "slow waves": lambda step, draw: 2 + 0.4 * math.sin(step / 60) - step / 1000 + 0.1 * draw,
    "a rising task": lambda step, draw: 1 + step / 4000 + 0.3 * draw,
}


@pytest.mark.parametrize("name", COURSES)
@pytest.mark.parametrize("seed", one_in(4, range(8)))
def test_usual_losses_are_accused_of_nothing(name, seed):
    draws = random.Random(seed)
    noise = [draws.gauss(0, 1) for _ in range(1001)]
    recordings = recorded.healthy(1, 1000)
    recorded.lossy(recordings, lambda step, _: COURSES[name](step, noise[step]))
    assert [each for each in judge(Run("run", recordings)).findings if each.severity != NOTE] == []


def test_what_is_not_recorded_is_said_and_nothing_made_of_it():
    recordings = recorded.healthy(1, 100, method=None)
    for each in recordings:
        each |= {"layers": None, "units": None, "spectra": [], "spans": [], "solved": [], "events": [], "memory": {}}
        each["last"], each["whole"] = {"step": list(range(1, 101))}, {"step": list(range(1, 101))}
    verdict = judge(Run("run", recordings))
    assert verdict.findings == []
    assert len(verdict.missing) >= 8
    for each in recordings:
        each["last"] = each["whole"] = {}
    assert judge(Run("run", recordings)).findings == []


# ------------------------------------------------------------------ layers
@pytest.mark.parametrize(("share", "severity"), [(0.85, WARN), (1.0, BAD)])
def test_a_dead_layer_is_named(share, severity):
    recordings = recorded.healthy(2, 2000)
    recorded.units(recordings, "dead", LAYER, share)
    assert found(recordings) == [(severity, "dead", LAYER)]
    assert "since step 700" in only(recordings).why


def test_what_a_dead_layer_keeps_from_moving_is_no_fault_of_its_own():
    recordings = recorded.healthy(1, 2000)
    recorded.units(recordings, "dead", LAYER, 1.0)
    recorded.freeze(recordings, WEIGHT, gradient=0.0)
    assert found(recordings) == [(BAD, "dead", LAYER)]
    assert WEIGHT in only(recordings).why


def test_a_layer_that_was_dead_and_came_back_is_not_named():
    recordings = recorded.healthy(1, 2000)
    recorded.units(recordings, "dead", LAYER, 0.9)
    for each in recordings:
        for row in each["units"]["dead"][-12:]:
            row[each["units"]["names"].index(LAYER)] = 0.1
    assert found(recordings) == []


def test_a_saturated_layer_is_named():
    recordings = recorded.healthy(2, 2000)
    recorded.units(recordings, "saturated", LAYER, 0.95)
    assert found(recordings) == [(BAD, "saturated", LAYER)]


def test_a_collapsed_layer_is_named():
    recordings = recorded.healthy(1, 2000)
    names = list(recorded.UNITS)
    for name in names[names.index("blocks.0.mlp.2") :]:
        # Of what reads one direction there is no rank.
        recorded.units(recordings, "rank", name, 1.02 if name == "blocks.0.mlp.2" else None)
    assert found(recordings) == [(WARN, "collapsed", "blocks.0.mlp.2")]


def test_few_directions_of_few_units_or_for_few_answers_are_no_collapse():
    recordings = recorded.healthy(1, 2000)
    recorded.units(recordings, "rank", "blocks.0.attn", 1.0)
    recordings[0]["units"]["width"][0] = 7
    assert found(recordings) == []
    last = list(recorded.UNITS)[-1]
    recorded.units(recordings, "rank", last, 1.0)
    assert found(recordings) == [(WARN, "collapsed", last)]
    recordings[0]["layers"]["shapes"][-1] = [2, 128]
    assert found(recordings) == []


def test_exploding_outputs_are_named_where_they_begin():
    recordings = recorded.healthy(1, 2000)
    for name in list(recorded.UNITS)[2:]:
        recorded.units(recordings, "largest", name, 1e5)
    assert found(recordings) == [(BAD, "large", list(recorded.UNITS)[2])]


@pytest.mark.parametrize(("gradient", "words"), [(None, "no gradient reaches it"), (0.1, "has a gradient")])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_frozen_layer_is_named(gradient, words, sharded):
    recordings = recorded.healthy(2, 2000, sharded=sharded)
    recorded.freeze(recordings, WEIGHT, gradient=gradient)
    assert found(recordings) == [(WARN, "frozen", WEIGHT)]
    assert words in only(recordings).what


def test_a_layer_that_is_let_loose_later_is_not_frozen():
    recordings = recorded.healthy(1, 2000)
    layers = recordings[0]["layers"]
    place = layers["names"].index(WEIGHT)
    for row in layers["update"][: len(layers["update"]) // 2]:
        row[place] = 0.0
    assert found(recordings) == []


def test_where_nothing_moves_nothing_is_frozen():
    recordings = recorded.healthy(1, 2000)
    for name in recorded.WEIGHTS:
        recorded.freeze(recordings, name, gradient=0.1)
    assert found(recordings) == []


# ------------------------------------------------------------------ loss
def test_a_rate_that_explodes_is_found_with_its_step():
    recordings = recorded.healthy(1, 2000)
    recorded.lossy(recordings, lambda step, loss: loss + (math.exp((step - 900) / 40) if 900 < step else 0))
    severity, kind, where = found(recordings)[0]
    assert (severity, kind) == (BAD, "diverged")
    assert 900 < int(where.split()[-1].replace(",", "")) < 1000
    assert "it was 0.003 there" in only(recordings).move


def stride(recordings, ratio, look=0):
    """Have every weight move by a part of its norm at one look."""
    for recording in recordings:
        layers = recording["layers"]
        layers["update"][look] = [ratio**2 * weight for weight in layers["weight"][look]]


@pytest.mark.parametrize(("level", "severity"), [(None, NOTE), (5.0, BAD)], ids=["the loss fell", "it did not"])
def test_steps_as_long_as_the_weights_are_found(level, severity):
    recordings = recorded.healthy(steps=400)
    stride(recordings, 2.0)
    if level is not None:
        recorded.lossy(recordings, lambda step, loss: level)
    step = recordings[0]["layers"]["step"][0]
    assert (severity, "far", f"step {step:,}") in found(recordings)


@pytest.mark.parametrize("names", [1, 0])
def test_one_weight_that_begins_at_zero_is_no_such_step(names):
    recordings = recorded.healthy(steps=400)
    layers = recordings[0]["layers"]
    for column in range(names):
        layers["update"][0][column] = 100 * layers["weight"][0][column]
    assert found(recordings) == []


def test_gradients_that_explode_are_found():
    recordings = recorded.healthy(1, 2000)
    recorded.column(recordings, "gradient", lambda step: 1.0 if step < 1500 else 1e10)
    assert found(recordings) == [(BAD, "exploded", "from step 1,500")]


def test_a_batch_that_is_not_finite_is_found_with_its_step():
    recordings = recorded.healthy(2, 2000)
    recorded.lossy(recordings[:1], lambda step, loss: None if step == 1500 else loss)
    recorded.event(recordings, 1500, "skipped", "", "1 x a gradient was not finite: the step was left out")
    recorded.column(recordings, "skipped", lambda step: int(step >= 1500))
    assert found(recordings) == [(WARN, "nan", "step 1,500")]


def test_a_loss_that_stays_not_finite_is_broken():
    recordings = recorded.healthy(1, 2000)
    recorded.lossy(recordings, lambda step, loss: None if step >= 1200 else loss)
    assert [(s, k) for s, k, _ in found(recordings)] == [(BAD, "nan")]


def test_a_loss_that_exploded_first_is_told_from_a_batch_that_is_not_finite():
    recordings = recorded.healthy(1, 2000)
    recorded.lossy(recordings, lambda step, loss: None if step >= 1210 else loss * 10 if step >= 1200 else loss)
    assert "exploded" in judge(Run("run", recordings)).findings[0].what
    recorded.lossy(recordings, lambda step, loss: None if step >= 1210 else 2.0)
    assert "exploded" not in judge(Run("run", recordings)).findings[0].what


def test_a_scaler_that_looks_for_its_scale_is_no_fault():
    recordings = recorded.healthy(1, 2000)
    recordings[0]["facts"]["precision"] = "16-mixed"
    recorded.column(recordings, "skipped", lambda step: min(step, 3))
    recorded.event(recordings, 2, "skipped", "", "2 x a gradient was not finite")
    assert found(recordings) == []
    recorded.column(recordings, "skipped", lambda step: step // 2)
    assert [kind for _, kind, _ in found(recordings)] == ["nan"]


@pytest.mark.parametrize("at", [500, 1500])
def test_a_spike_is_found(at):
    recordings = recorded.healthy(1, 2000, seed=1)
    at = next(step for step in recorded.kept(2000) if step >= at)
    recorded.lossy(recordings, lambda step, loss: 9.0 if step == at else loss)
    assert found(recordings) == [(WARN, "spike", f"step {at:,}")]


@pytest.mark.parametrize("lift", [0.9, 3.0])
def test_a_mislabelled_epoch_is_found_with_its_steps(lift):
    recordings = recorded.healthy(2, 2000)
    recorded.lossy(recordings, lambda step, loss: loss + lift if 1300 <= step < 1420 else loss)
    assert found(recordings) == [(WARN, "plateau", "steps 1,300 to 1,419")]


def test_a_small_lift_that_lasts_is_found():
    recordings = recorded.healthy(1, 2000)
    recorded.lossy(recordings, lambda step, loss: loss + 0.45 if 1300 <= step < 1420 else loss)
    ((severity, kind, where),) = found(recordings)
    first, last = (int(step.replace(",", "")) for step in where.removeprefix("steps ").split(" to "))
    assert (severity, kind) == (WARN, "plateau")
    assert 1300 <= first <= 1305
    assert 1414 <= last <= 1424


def test_a_loss_that_rose_and_stayed_is_found():
    recordings = recorded.healthy(1, 2000)
    recorded.lossy(recordings, lambda step, loss: loss + 1.2 if step >= 1600 else loss)
    assert found(recordings) == [(WARN, "risen", "from step 1,600")]


def test_many_spikes_are_the_noise_of_the_training():
    recordings = recorded.healthy(1, 1000)
    recorded.lossy(recordings, lambda step, loss: 30.0 if step % 130 == 100 else loss)
    assert found(recordings) == [(NOTE, "noisy", "the whole run")]


def test_two_that_are_not_much_farther_out_than_others_are_no_spikes():
    recordings = recorded.healthy(1, 1000)
    far = {step: 0.7 if step in (433, 733) else 0.29 for step in range(53, 1000, 20)}
    recorded.lossy(recordings, lambda step, _: 1.0 + far.get(step, 0.01 * math.sin(step)))
    assert found(recordings) == []
    recorded.lossy(recordings, lambda step, _: 1.0 + far.get(step, 0.01 * math.sin(step)) * (9 if step == 433 else 1))
    assert found(recordings) == [(WARN, "spike", "step 433")]


def test_an_excursion_that_lasts_is_no_new_level():
    (one,) = apart([1.0] * 50 + [5.0] * 200 + [1.0] * 50, 40, 8.0, 0.3)
    assert (one.first, one.last, one.back, one.before, one.top) == (50, 249, True, 1.0, 5.0)


# ------------------------------------------------------------------ ranks, second order, the end
def test_a_slow_rank_is_named():
    recordings = recorded.healthy(4, 400)
    for span in recordings[2]["spans"]:
        span[3] *= 2.5 if span[0] in ("act", "solve") else 1
    assert [(k, w) for _, k, w in found(recordings)] == [("slow", "rank 2")]
    assert "takes it 2.5" in only(recordings).what or "takes it 2.4" in only(recordings).what


def test_ranks_without_a_recording_are_named():
    assert found(recorded.healthy(4, 400)[:2]) == [(WARN, "missing", "ranks 2, 3")]


def test_a_budget_that_was_not_kept_is_found():
    recordings = recorded.healthy(1, 400)
    recorded.column(recordings, "overhead_measured", lambda step: 0.45)
    assert found(recordings) == [(WARN, "budget", "the whole run")]
    recordings[0]["facts"]["settings"]["SecondOrder"]["max_overhead"] = "Overhead(share=0.45, strict=True)"
    assert found(recordings) == []
    recordings[0]["facts"]["settings"]["SecondOrder"]["max_overhead"] = None
    recorded.column(recordings, "overhead_measured", lambda step: 0.7)
    assert found(recordings) == [(NOTE, "overhead", "the whole run")]


def test_a_basis_that_is_not_renewed_is_found():
    recordings = recorded.healthy(1, 2000)
    recorded.column(recordings, "staleness_max", lambda step: max(12, step - 600))
    assert found(recordings) == [(WARN, "stale", "step 2,000")]


def test_fallbacks_are_found_with_their_blocks():
    recordings = recorded.healthy(1, 2000)
    recorded.column(recordings, "fallbacks", lambda step: step // 10)
    recorded.event(recordings, 10, "fallback", WEIGHT, "a higher rung")
    assert found(recordings) == [(WARN, "fallback", WEIGHT)]
    recorded.column(recordings, "fallbacks", lambda step: 2)
    assert found(recordings) == [(NOTE, "fallback", WEIGHT)]


@pytest.mark.parametrize(("kind", "back", "severity"), [("cooled", None, WARN), ("reverted", "entered", NOTE)])
def test_a_block_that_went_back_to_the_base_is_named_with_its_return(kind, back, severity):
    recordings = recorded.healthy(2, 2000)
    recorded.event(recordings, 700, kind, WEIGHT, "solves of its basis kept failing")
    if back:
        recorded.event(recordings, 900, back, WEIGHT, "")
    assert found(recordings) == [(severity, "left", WEIGHT)]
    assert ("came back at step 900" in only(recordings).what) == bool(back)


def test_sgd_beyond_the_edge_of_stability_is_found_and_at_the_edge_it_is_not():
    recordings = recorded.healthy(1, 2000, method=None, optimizer="SGD")
    for factor, kinds in ((1.05, []), (2.0, ["sharp"])):
        for look in recordings[0]["spectra"]:
            look["top"] = [factor * 2 / look["lr"]]
        assert [kind for _, kind, _ in found(recordings)] == kinds
    recordings[0]["facts"]["settings"]["SGD"]["momentum"] = 0.9
    assert found(recordings) == []
    recordings = recorded.healthy(1, 2000)
    recordings[0]["spectra"][-1]["top"] = [1e9]
    assert found(recordings) == []


@pytest.mark.parametrize(("why", "severity"), [("exception", BAD), ("sigterm", NOTE)])
def test_how_a_run_ended_is_told(why, severity):
    recordings = recorded.healthy(1, 100)
    recordings[0]["written"] |= {"why": why, "message": "Traceback\nRuntimeError: out of memory"}
    assert found(recordings) == [(severity, why, "step 100")]
    assert "out of memory" in only(recordings).why


def test_the_worst_comes_first():
    recordings = recorded.healthy(4, 2000)[:3]
    recorded.event(recordings, 700, "reverted", WEIGHT, "")
    recorded.event(recordings, 900, "entered", WEIGHT, "")
    recorded.units(recordings, "dead", LAYER, 1.0)
    assert [severity for severity, _, _ in found(recordings)] == [BAD, WARN, NOTE]


def test_what_loses_next_to_nothing_of_what_was_gained_is_no_lift():
    """Losses over orders of magnitude, as of physics-informed networks under Adam, double at the end and come back."""
    recordings = recorded.healthy(1, 2000)
    recorded.lossy(recordings, lambda step, loss: 50 * math.exp(-step / 60) + (0.2 if 1300 <= step < 1350 else 0.02))
    assert found(recordings) == []
