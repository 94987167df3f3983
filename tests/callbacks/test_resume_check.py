"""A resume check says whether a resumed training equals one that did not stop, and why not."""

import math

import numpy as np
import pytest
import torch

from lightning_so import ConfigError, LaunchError, resume_check
from lightning_so.callbacks.resume.compare import compare_weights, compare_work, reasons
from lightning_so.callbacks.resume.fingerprint import random_state, rows
from lightning_so.callbacks.resume.launch import fresh_process, this_process
from lightning_so.callbacks.resume.verdict import Cause
from tests.support import recipes
from tests.support.forked import call
from tests.support.problems import batch


def check(recipe, resumed=None, **options):
    return resume_check(recipe, resumed=resumed, **{"steps": 16, "stop": 8, "launch": this_process, **options})


@pytest.mark.parametrize("stop", [3, 4, 8, 15], ids=["bent", "first basis", "rotated", "last"])
def test_soap_resumes_bit_for_bit(stop):
    found = check(recipes.exact, stop=stop)
    assert found.exact
    assert found.equal
    assert found.exit_code == 0
    assert found.reasons == ()
    assert "EQUAL, bit for bit" in str(found)
    assert "3 blocks rotated" in str(found)


def test_a_plain_loader_is_at_its_place_where_an_epoch_ends():
    assert check(recipes.epochs).exact


def test_random_numbers_that_a_callback_saves_are_no_difference():
    assert check(recipes.remembering).exact


@pytest.mark.parametrize("name", ["pytorch_lightning", "lightning.pytorch"])
def test_both_import_names_of_lightning(name):
    boring = pytest.importorskip(f"{name}.demos.boring_classes").BoringModel
    arguments = {"accelerator": "cpu", "devices": 1, "max_epochs": 9, "limit_train_batches": 2, "limit_val_batches": 1}
    found = check(lambda: (boring(), None, dict(arguments)), steps=4, stop=2)
    assert found.exact
    assert "no SecondOrder" in str(found)


@pytest.mark.parametrize(
    ("recipe", "resumed", "cause", "words"),
    [
        pytest.param(
            *(recipes.plain_loader, None, Cause.DATA, "step 9 the resumed run saw the batch of step 1. Lightning"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(recipes.shuffled, None, Cause.DATA, "(those of step 1), 0 of them in both. Checkpoints hold no random"),
            marks=pytest.mark.slow,
        ),
        (recipes.exact, recipes.small_batches, Cause.DATA, "saw 8 rows, the resumed one 4"),
        (recipes.dropping, None, Cause.RANDOM, "step 9 draws from the generator of torch"),
        (recipes.exact, recipes.without, Cause.STATE, "the resumed run has no SecondOrder"),
        (recipes.compact, None, Cause.STATE, "use state='full'"),
        (recipes.scheduled, recipes.rescheduled, Cause.STATE, "learning rates are [0.01], in the resumed run [0.005]"),
        (recipes.counting, None, Cause.STATE, "what is left is the state"),
        (recipes.unseeded, None, Cause.REPEAT, "before any stop"),
    ],
    ids=["place", "shuffled", "size", "dropout", "callback", "compact", "rate", "attribute", "unseeded"],
)
def test_a_difference_has_its_cause(recipe, resumed, cause, words):
    found = check(recipe, resumed)
    assert not found.equal
    assert found.exit_code == 1
    assert [reason.cause for reason in found.reasons] == [cause]
    assert words in str(found)
    assert "DIFFERENT" in str(found)
    assert found.weights.worst in found.weights.differing


@pytest.mark.slow
def test_a_tolerance_lets_weights_differ_and_not_counts():
    assert check(recipes.plain_loader, tolerance=1.0).exit_code == 0
    assert "EQUAL within 1" in str(check(recipes.plain_loader, tolerance=1.0))
    assert check(recipes.exact, recipes.without, tolerance=1.0).exit_code == 1


def test_a_check_leaves_the_random_state_alone():
    before = random_state()
    check(recipes.without, steps=2, stop=1)
    assert random_state() == before


TRAINED = recipes.exact()


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        (recipes.exact, {"stop": 16}, "stop must lie between"),
        (recipes.exact, {"tolerance": -1.0}, "must be 0 or more"),
        (lambda: TRAINED, {}, "make a new one at every call"),
        (lambda: recipes.Module(), {}, "must return a tuple"),
        (lambda: (torch.nn.Linear(1, 1), None, {}), {}, "must be a LightningModule"),
        (recipes.two_ranks, {}, "use fresh_process"),
        (recipes.short, {}, "ended after 4 of 16 steps: raise"),
        (lambda: recipes.exact(), {"launch": fresh_process}, "cannot be sent to another process"),
    ],
    ids=["stop", "tolerance", "trained", "tuple", "module", "ranks", "short", "lambda"],
)
def test_what_cannot_work_is_refused(recipe, options, words):
    with pytest.raises(ConfigError, match=words):
        check(recipe, **options)


def test_a_recipe_of_main_is_refused_before_a_process_starts(monkeypatch):
    monkeypatch.setattr(recipes.exact, "__module__", "__main__")
    with pytest.raises(ConfigError, match="Move it to a module"):
        check(recipes.exact, launch=fresh_process)


def failing():
    raise RuntimeError("the disk is full")


def test_a_run_that_fails_says_which_and_why():
    with pytest.raises(LaunchError, match="the run without a stop failed: RuntimeError: the disk is full"):
        check(failing)


def test_a_lost_state_that_is_refused_is_said():
    with pytest.raises(
        LaunchError, match=r"the resumed run failed: StateError: .* the state of SecondOrder is missing"
    ):
        check(recipes.forgetful)


@pytest.mark.slow
def test_so_does_one_in_a_process_of_its_own():
    with pytest.raises(LaunchError, match="the run without a stop failed: RuntimeError: the disk is full"):
        check(failing, launch=fresh_process)


def told_of(recipe):
    told = []
    return check(recipe, launch=fresh_process, tell=told.append), told


@pytest.mark.slow
def test_two_ranks_resume_bit_for_bit():
    found, told = call(told_of, recipes.two_ranks)
    assert found.exact
    assert found.worlds == ("2 rank(s), DDPStrategy",) * 2
    assert told == [
        "the run without a stop, to step 16",
        "the run that stops, to step 8",
        "the resumed run, to step 16",
    ]


def test_weights_are_compared_bit_for_bit():
    a = {"x": torch.zeros(2), "y": torch.ones(3)}
    assert compare_weights(a, {name: value.clone() for name, value in a.items()}).differing == ()
    found = compare_weights(a, {"x": -torch.zeros(2), "y": torch.tensor([1.0, 1.0, 1.25])})
    assert found.differing == ("x", "y")
    assert (found.largest, found.worst, found.total, found.elements) == (0.25, "y", 2, 5)
    for other in ({"x": torch.zeros(2)}, {**a, "y": torch.ones(2)}, {**a, "x": torch.tensor([0.0, math.nan])}):
        assert compare_weights(a, other).largest == math.inf
    nan = {"x": torch.tensor([math.nan])}
    assert compare_weights(nan, {"x": nan["x"].clone()}).differing == ()


def notes(**changes):
    step = {"rows": ["a", "b"], "place": 0, "batches": 1, "random": {"torch": "r"}, "drawn": [], "rates": [0.1]}
    counts = {"step": 2, "solves": 4, "retries": 1}
    facts = {"steps": {1: step}, "start": {"w": "1"}, "marked": {"w": "1"}, "ranks": 1, "strategy": "S", "kinds": []}
    return {**facts, "plans": [["SOAP", "w: rotated"]], "counts": [counts], **changes}


def test_another_world_may_round_otherwise_and_must_do_the_same():
    one, parts = notes(), [{**notes()["steps"][1], "rows": [row]} for row in "ab"]
    two = [notes(ranks=2, steps={1: part}, counts=[{"step": 2, "solves": 4, "retries": 0}]) for part in parts]
    assert [reason.cause for reason in reasons([one], [one], two, 1)] == [Cause.WORLD]
    assert compare_work([one], two) == ()
    assert compare_work([one], [notes(counts=two[0]["counts"])]) == ("counts: retries 1, resumed 0",)
    assert compare_work([one], [notes(plans=[["SOAP", "w: base"]])]) == ("plan: 'w: rotated', resumed 'w: base'",)


@pytest.mark.slow
def test_micro_batches_are_the_batch():
    assert check(recipes.accumulating).exact
    found = check(recipes.exact, recipes.accumulating, tolerance=1e-5)
    assert found.equal
    assert [reason.cause for reason in found.reasons] == [Cause.WORLD]


def test_weights_that_are_not_those_of_the_checkpoint_are_named():
    (reason,) = reasons([notes()], [notes()], [notes(start={"w": "2"})], 1)
    assert reason.cause is Cause.STATE
    assert "the first is w" in reason.text


class Graph:
    def __init__(self, x):
        self.x, self.meta = x, {"ids": list(range(len(x)))}


def test_rows_of_a_batch_are_known_again_in_its_parts():
    x, y = batch(0)
    whole = rows({"x": x, "y": y, "names": [f"n{i}" for i in range(8)]})
    parts = [rows({"x": x[i::2], "y": y[i::2], "names": [f"n{j}" for j in range(i, 8, 2)]}) for i in (0, 1)]
    assert sorted(whole) == sorted(parts[0] + parts[1])
    assert len(set(whole)) == 8
    assert rows((x, y)) != rows((x + 1, y))
    assert rows([x.numpy(), y]) == rows([x, y])
    assert len(rows((x, y[:3]))) == 1 == len(rows(3)) == len(rows(x.sum())) == len(rows(object()))
    assert rows((x, y[:3])) != rows((x + 1, y[:3]))
    assert len(rows(Graph(x))) == 8
    assert rows(x.bool()) != rows(x.to(torch.bfloat16)) != rows(x.to(torch.complex64))


def test_the_random_state_names_what_was_drawn_from():
    before = random_state()
    np.random.rand()
    after = random_state()
    assert [name for name in before if before[name] != after[name]] == ["numpy"]
