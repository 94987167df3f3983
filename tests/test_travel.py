"""Checkpoints travel: saved under one strategy and world size, resumed under another; within one, bit for bit."""

import functools
import itertools
import shutil
from contextlib import contextmanager

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from lightning_so import EKFAC, KFAC, SOAP, Muon, StateError
from lightning_so.callbacks import saving
from tests.trainings import Save, plain, train

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
STEPS, STOP = 24, 16
METHODS = {
    "none": (None, ADAMW),
    "soap": (SOAP(start=4, period=4), ADAMW),
    "kfac": (KFAC(period=4), SGD),
    "ekfac": (EKFAC(start=4, period=4), ADAMW),
}
#: Strategies with the files that they write: of whole tensors, or folders of pieces.
FORMS = {
    "one": ("one", None),
    "ddp": ("ddp", None),
    "fsdp2": ("fsdp2", True),
    "fsdp2 in pieces": ("fsdp2", False),
    "fsdp1": ("fsdp1", True),
    "fsdp1 in pieces": ("fsdp1", False),
}
WHOLE = [name for name in FORMS if "pieces" not in name]
NAME = "lightning_so.SecondOrder"


def fit(world, form, method, **arguments):
    """Train under a strategy: what came of it, by rank."""
    strategy, whole = FORMS[form]
    found, base = METHODS[method]
    arguments = {"steps": STEPS, "whole_files": whole, **arguments}
    if form == "one":
        return [train(strategy, found, base, **arguments)]
    return world.run(train, strategy, found, base, **arguments)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, two):
    """Gives a run that saved at `STOP` and went on, and the path."""
    folder = tmp_path_factory.mktemp("saved")

    @functools.cache
    def give(form, method="soap", dtype=torch.float32, state="full"):
        path = folder / f"{form} {method} {dtype} {state}.ckpt"
        more = {"state": state} if METHODS[method][0] else {}
        return fit(two, form, method, dtype=dtype, callbacks=[Save(str(path), STOP)], **more), path

    return give


def apart(ranks, others):
    """The largest difference of any weight, on any rank, to that of another run."""
    weights = others[0].weights
    return max(float((value - weights[name]).abs().max()) for rank in ranks for name, value in rank.weights.items())


def sharded(methods, everyday):
    return [
        pytest.param(form, method, marks=() if (form, method) in everyday else pytest.mark.slow)
        for form, method in itertools.product([form for form in FORMS if "fsdp" in form], methods)
    ]


@pytest.mark.parametrize(("form", "method"), sharded(("soap", "kfac", "ekfac"), [("fsdp2 in pieces", "soap")]))
def test_within_a_strategy_a_resumed_run_equals_one_that_did_not_stop_bit_for_bit(two, saved, form, method):
    straight, path = saved(form, method)
    again = fit(two, form, method, resume=str(path))
    assert apart(again, straight) == 0
    for one, other in zip(again, straight, strict=True):
        assert one.report.portable() == other.report.portable()
        # With their biases there are more matrices, of one column.
        acting = {"soap": (16, 0), "kfac": (0, 22), "ekfac": (22, 0)}
        assert (one.report.rotated, one.report.preconditioned) == acting[method]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["ddp", "fsdp2", "fsdp2 in pieces", "fsdp1"])
def test_saving_changes_nothing(two, saved, form):
    assert apart(fit(two, form, "soap"), saved(form)[0]) == 0


#: What Lightning itself can load: files of whole tensors everywhere, folders of pieces in their own family.
FAMILIES = [(f"{name} in pieces", to) for name in ("fsdp2", "fsdp1") for to in (name, f"{name} in pieces")]
RING = [(form, WHOLE[(number + 1) % len(WHOLE)]) for number, form in enumerate(WHOLE)]
#: Each form to one process and from it, each family, and once around.
PAIRS = {*itertools.product(WHOLE, ["one"]), *itertools.product(["one"], FORMS), *FAMILIES, *RING} - {("one", "one")}
EVERYDAY = [("fsdp1", "one"), ("one", "fsdp2")]


@pytest.mark.parametrize(
    ("form", "to"), [pytest.param(*pair, marks=() if pair in EVERYDAY else pytest.mark.slow) for pair in sorted(PAIRS)]
)
def test_a_checkpoint_is_resumed_under_another_strategy(two, saved, form, to):
    straight, path = saved(form)
    again = fit(two, to, "soap", resume=str(path))
    assert again[0].report.step == STEPS
    assert again[0].report.rotated == 16
    # Measured: 1e-6, as between the strategies without a stop.
    assert apart(again, straight) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kfac", "ekfac"])
@pytest.mark.parametrize(("form", "to"), RING)
def test_every_method_travels(two, saved, form, to, method):
    straight, path = saved(form, method)
    assert apart(fit(two, to, method, resume=str(path)), straight) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["soap", "kfac"])
@pytest.mark.parametrize(("form", "to"), [("one", "fsdp2"), ("fsdp2", "ddp")])
def test_in_float64_nothing_is_lost(two, saved, form, to, method):
    straight, path = saved(form, method, torch.float64)
    assert apart(fit(two, to, method, resume=str(path), dtype=torch.float64), straight) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(("form", "method"), [("fsdp2 in pieces", "soap"), ("fsdp1", "ekfac"), ("fsdp1", "kfac")])
def test_two_ranks_become_four_and_four_become_two(two, four, saved, tmp_path, form, method):
    straight, path = saved(form, method)
    assert apart(fit(four, form, method, resume=str(path)), straight) < 1e-5
    again = str(tmp_path / "four.ckpt")
    fit(four, form, method, resume=str(path), callbacks=[Save(again, STOP + 4)])
    assert apart(fit(two, form, method, resume=again), straight) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("method", "state"), [("soap", "compact"), ("kfac", "rebuild"), ("ekfac", "compact")])
def test_smaller_states_travel_too(two, saved, method, state):
    _, path = saved("fsdp2", method, state=state)
    ends = [fit(two, to, method, resume=str(path)) for to in ("one", "ddp", "fsdp2", "fsdp1")]
    for end in ends[1:]:
        assert apart(end, ends[0]) < 1e-4
        assert end[0].report.step == STEPS
        assert end[0].report.failures == 0


# ---------------------------------------------------------------- what is in a file


def content(path):
    """A checkpoint's optimizer state by parameter name, its weights, and ours."""
    file = torch.load(path / "meta.pt" if path.is_dir() else path, weights_only=True)
    if path.is_dir():
        whole = path.with_suffix(".whole")
        dcp_to_torch_save(path, whole)
        file.update(torch.load(whole, weights_only=True))
        file["optimizer_states"] = [file["optimizer_0"]]
    weights = file.get("state_dict", file.get("model"))
    state = file["optimizer_states"][0]["state"]
    numbers = dict(enumerate(weights))
    return {numbers.get(key, key): value for key, value in state.items()}, weights, file


def near(one, other, share):
    """Whether two tensors differ by at most a share of their length."""
    return float((one - other).norm()) <= share * float(other.norm())


@pytest.mark.parametrize("form", [pytest.param(f, marks=() if f == "fsdp1" else pytest.mark.slow) for f in FORMS])
def test_files_of_all_strategies_hold_the_same_plain_and_exact_moments(saved, form):
    state, weights, file = content(saved(form)[1])
    expected, same, other = content(saved("one")[1])
    assert set(state) == set(expected) == set(weights) == set(same)
    for name, moments in expected.items():
        for key, value in moments.items():
            assert near(state[name][key], value, 1e-3), f"{key} of {name}"
    ours, theirs = (f["callbacks"][NAME]["engines"][0]["moments"] for f in (file, other))
    assert len(ours) == 16
    for name, moments in theirs.items():
        for key, value in moments.items():
            assert near(ours[name][key], value, 1e-3), f"{key} of {name}"
            # Plain ones are others, so that the two comparisons are not one.
            assert not near(state[name][key], value, 0.1), f"{key} of {name}"


class Early(pl.Callback):
    """Saves before the first step, when no optimizer has a state."""

    def __init__(self, path) -> None:
        self.path = path

    def on_train_start(self, trainer, pl_module) -> None:
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("form", ["fsdp2 in pieces", pytest.param("fsdp1", marks=pytest.mark.slow)])
def test_torch_making_the_optimizers_state_is_no_step_of_ours(two, tmp_path, form):
    early = str(tmp_path / "early.ckpt")
    fit(two, form, "none", steps=2, callbacks=[Save(early, 1)])
    # When it loads one, here of a run without SecondOrder,
    assert fit(two, form, "soap", steps=2, resume=early)[0].report.step == 1
    # and when it saves one that is not there yet.
    ends = fit(two, form, "kfac", steps=2, callbacks=[Early(early)])
    assert ends[0].report.step == 2
    assert apart(ends, fit(two, form, "kfac", steps=2)) == 0


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=() if f == "fsdp2 in pieces" else pytest.mark.slow) for f in FORMS]
)
def test_a_save_in_the_middle_of_a_step_holds_the_weights(two, tmp_path, form):
    after, middle = tmp_path / "after.ckpt", tmp_path / "middle.ckpt"
    saves = [Save(str(after), STOP), Save(str(middle), STOP, middle=True)]
    ends = fit(two, form, "soap", callbacks=saves, steps=STOP + 1)
    if form != "fsdp2 in pieces":  # that is among the everyday tests
        assert apart(ends, fit(two, form, "soap", steps=STOP + 1)) == 0
    (_, weights, _), (_, expected, _) = content(middle), content(after)
    assert list(weights) == list(expected)
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


# ---------------------------------------------------------------- signals and refusals


class Signal(Save):
    """Saves as from a signal's handler, and looks at what our exchanges have sent meanwhile."""

    @contextmanager
    def handled(self, engine):
        original, before = saving.inside_handler, (engine.peers.sent, engine.peers.seconds)
        saving.inside_handler = lambda: True
        try:
            yield
        finally:
            saving.inside_handler = original
        assert (engine.peers.sent, engine.peers.seconds) == before

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.at:
            engine = trainer.callbacks[0].engines[0]
            live = [v.clone() for s in plain(trainer.optimizers[0]).state.values() for v in s.values()]
            with self.handled(engine):
                trainer.save_checkpoint(self.path)
            again = [v for s in plain(trainer.optimizers[0]).state.values() for v in s.values()]
            assert all(torch.equal(a, b) for a, b in zip(live, again, strict=True))
            assert dist.get_world_size() == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "base"),
    [("fsdp2", torch.optim.AdamW), ("fsdp1 in pieces", torch.optim.AdamW), ("fsdp1", torch.optim.NAdam)],
)
def test_a_signals_handler_saves_without_the_other_ranks(two, tmp_path, form, base):
    path = tmp_path / "signal.ckpt"
    strategy, whole = FORMS[form]
    arguments = (strategy, METHODS["soap"][0], (base, {"lr": 3e-3}), STEPS)
    two.run(train, *arguments, whole_files=whole, callbacks=[Signal(str(path), STOP)])
    state, weights, file = content(path)
    matrices = [name for name, value in weights.items() if value.ndim == 2 and min(value.shape) > 1]
    assert len(matrices) > 10
    for name, moments in state.items():
        fresh = not moments["exp_avg"].any() and not moments["exp_avg_sq"].any() and moments["step"] == 0
        assert fresh == (name in matrices), name
        if base is torch.optim.NAdam:
            assert (moments["mu_product"] == 1) == fresh
    assert file["callbacks"][NAME]["engines"][0]["kind"] == "rebuild"
    ends = two.run(train, *arguments, whole_files=whole, resume=str(path))
    assert all(bool(value.isfinite().all()) for value in ends[0].weights.values())
    assert apart(ends, ends) == 0
    assert ends[0].report.step == STEPS


def refusal(*arguments, **named):
    """What a rank says."""
    try:
        train(*arguments, **named)
    except StateError as error:
        return str(error)
    return None


def refused(world, form, method=METHODS["soap"][0], **arguments):
    """What every rank says, which must be the same."""
    strategy, whole = FORMS[form]
    named = {"steps": STEPS, "whole_files": whole, **arguments}
    found = world.run(refusal, strategy, method, ADAMW, **named)
    assert found == found[:1] * len(found)
    return found[0]


@pytest.mark.parametrize(
    "form",
    [pytest.param(f, marks=() if f == "fsdp2 in pieces" else pytest.mark.slow) for f in FORMS if f != "one"],
)
def test_what_is_not_this_runs_is_refused_by_name_on_every_rank(two, saved, tmp_path, form):
    _, path = saved(form)
    assert "this run uses Muon" in refused(two, form, Muon(), resume=str(path))
    text = refused(two, form, route={"base": ["*.up.*"]}, resume=str(path))
    assert "Only in the state: ['net.blocks.0.up.weight', 'net.blocks.1.up.weight']" in text
    broken = tmp_path / "broken.ckpt"
    (shutil.copytree if path.is_dir() else shutil.copy)(path, broken)
    where = broken / "meta.pt" if broken.is_dir() else broken
    file = torch.load(where, weights_only=True)
    del file["callbacks"][NAME]["engines"][0]["moments"]["net.blocks.0.up.weight"]
    torch.save(file, where)
    assert "net.blocks.0.up.weight rotates, but the state has no moments" in refused(two, form, resume=str(broken))
    del file["callbacks"][NAME]
    torch.save(file, where)
    assert "the state of SecondOrder is missing" in refused(two, form, resume=str(broken))


# ---------------------------------------------------------------- what Lightning cannot do, with or without us


@pytest.mark.slow
@pytest.mark.parametrize(("form", "to"), [("fsdp2 in pieces", "one"), ("fsdp1 in pieces", "fsdp2")])
def test_folders_of_pieces_stay_in_their_family(two, saved, form, to):
    """If this fails, the documentation can promise more."""
    _, path = saved(form, "none")
    with pytest.raises((AssertionError, OSError), match=r"Is a directory|Missing key in checkpoint"):
        fit(two, to, "none", resume=str(path))


@pytest.mark.slow
def test_lightning_takes_the_numbers_of_param_groups_for_those_of_the_model(two, tmp_path):
    """If this fails, the documentation can promise more."""
    path = str(tmp_path / "groups.ckpt")
    fit(two, "one", "none", grouped=True, callbacks=[Save(path, STOP)])
    with pytest.raises(AssertionError, match="must match the size of tensor"):
        fit(two, "fsdp2", "none", grouped=True, resume=path)
