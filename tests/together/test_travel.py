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
from torch.utils.data import DataLoader

from lightning_so import EKFAC, KFAC, SOAP, Muon, StateError
from lightning_so.callbacks import saving
from tests.support.inside import SaveInside
from tests.support.peers import needs_deepspeed
from tests.support.trainings import Module, Save, Standing, made, plain, train, unchanged, whole
from tests.support.transformer import batch

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
#: By the stop all matrices rotate, and after it each is solved twice.
STEPS, STOP = 14, 10
METHODS = {
    "none": (None, ADAMW),
    "soap": (SOAP(start=2, period=4), ADAMW),
    "kfac": (KFAC(fisher="empirical", period=4), SGD),
    "ekfac": (EKFAC(fisher="empirical", start=2, period=4), ADAMW),
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
ZERO = {f"zero{stage}": (f"zero{stage}", True) for stage in range(4)}
NAME = "lightning_so.SecondOrder"


def fit(world, form, method, **arguments):
    """Train under a strategy: what came of it, by rank."""
    strategy, files = (FORMS | ZERO)[form]
    found, base = METHODS[method]
    arguments = {"steps": STEPS, "whole_files": files, **arguments}
    if form == "one":
        return [train(strategy, found, base, **arguments)]
    return world.run(train, strategy, found, base, **arguments)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, two):
    """Gives a run that saved at `STOP` and went on, and the path."""
    folder = tmp_path_factory.mktemp("saved")

    @functools.cache
    def give(form, method="soap", dtype=torch.float32, state="full", grouped=False):
        path = folder / f"{form} {method} {dtype} {state} {grouped}.ckpt"
        more = {"state": state} if METHODS[method][0] else {}
        saves = [Save(str(path), STOP)]
        return fit(two, form, method, dtype=dtype, grouped=grouped, callbacks=saves, **more), path

    return give


def apart(ranks, others):
    """The largest difference of any weight, on any rank, to that of another run."""
    weights = others[0].weights
    return max(float((value - weights[name]).abs().max()) for rank in ranks for name, value in rank.weights.items())


#: SOAP in all files of sharded strategies, the others in a folder and in one file.
SHARDED = [
    pytest.param(form, method, marks=() if (form, method) == ("fsdp2 in pieces", "soap") else pytest.mark.slow)
    for form, method in itertools.product([form for form in FORMS if "fsdp" in form], ("soap", "kfac", "ekfac"))
    if method == "soap" or form in ("fsdp2 in pieces", "fsdp1")
]


@pytest.mark.slow
@pytest.mark.parametrize(("form", "method"), SHARDED)
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
    again = str(tmp_path / "four.ckpt")
    assert apart(fit(four, form, method, resume=str(path), callbacks=[Save(again, STOP + 2)]), straight) < 1e-5
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


# ---------------------------------------------------------------- DeepSpeed's stages

ZERO3 = pytest.param("zero3", marks=[pytest.mark.slow, needs_deepspeed])


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(("form", "method"), [("zero2", "soap"), ("zero3", "kfac")])
def test_within_a_stage_a_file_resumes_bit_for_bit(two, saved, form, method):
    straight, path = saved(form, method)
    again = fit(two, form, method, resume=str(path))
    assert apart(again, straight) == 0
    assert again[0].report.portable() == straight[0].report.portable()


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "to", "method", "grouped"),
    [
        ("zero2", "one", "soap", False),
        ("zero2", "ddp", "soap", False),
        ("one", "zero0", "soap", False),
        ("one", "zero1", "soap", False),
        ("one", "zero2", "soap", False),
        ("one", "zero3", "soap", False),
        ("fsdp2", "zero2", "soap", False),
        ("zero3", "one", "kfac", False),
        ("one", "zero2", "kfac", False),
        # In the order of the groups for torch, by the numbers of the model for FSDP.
        ("zero1", "one", "none", True),
        ("zero1", "fsdp2", "none", True),
        ("fsdp1", "zero3", "none", True),
    ],
)
def test_a_file_travels_to_deepspeed_and_from_it(two, saved, form, to, method, grouped):
    straight, path = saved(form, method, grouped=grouped)
    # The file's learning rate is gone on with.
    found, (base, arguments) = METHODS[method]
    named = {"steps": STEPS, "grouped": grouped, "whole_files": (FORMS | ZERO)[to][1], "resume": str(path)}
    call = [train] if to == "one" else [two.run, train]
    again = call[0](*call[1:], (FORMS | ZERO)[to][0], found, (base, {**arguments, "lr": 1e-9}), **named)
    # Measured: 1e-6.
    assert apart([again] if to == "one" else again, straight) < 1e-5


@needs_deepspeed
@pytest.mark.slow
def test_from_two_ranks_of_one_stage_to_four_of_another(four, saved):
    straight, path = saved("zero2")
    assert apart(fit(four, "zero3", "soap", resume=str(path)), straight) < 1e-5


@needs_deepspeed
@pytest.mark.slow
def test_a_folder_becomes_a_file(two, saved, tmp_path):
    folder, file = str(tmp_path / "folder.ckpt"), str(tmp_path / "file.ckpt")
    straight = fit(two, "zero3", "soap", whole_files=False, callbacks=[Save(folder, STOP)])
    fit(two, "zero3", "soap", resume=folder, callbacks=[Save(file, STOP + 2)])
    assert apart(fit(None, "one", "soap", resume=file), straight) < 1e-5


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_masters_travel_without_rounding(two, tmp_path, stage):
    path = str(tmp_path / "half.ckpt")
    straight = fit(two, stage, "soap", precision="bf16-mixed", callbacks=[Save(path, STOP)])
    assert {value.dtype for value in content(tmp_path / "half.ckpt")[1].values()} == {torch.float32}
    assert apart(fit(two, stage, "soap", precision="bf16-mixed", resume=path), straight) == 0


class Frozen(pl.Callback):
    """Half of the model is not trained; the optimizer has it all the same."""

    def __init__(self, **options) -> None:
        self.options = options

    def setup(self, trainer, pl_module, stage) -> None:
        pl_module.net.blocks[0].requires_grad_(False)
        vars(trainer.strategy).update(self.options)

    def on_train_end(self, trainer, pl_module) -> None:
        engine = getattr(trainer.strategy, "deepspeed_engine", None)
        assert engine is None or engine.global_steps == trainer.global_step


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(("form", "to"), [("one", "zero3"), ("zero3", "one"), ("zero3", "zero2")])
def test_weights_that_are_not_trained_travel_too(two, tmp_path, form, to):
    path = tmp_path / "frozen.ckpt"
    straight = fit(two, form, "none", callbacks=[Frozen(), Save(str(path), STOP)])
    state, weights, _ = content(path)
    assert set(weights) > set(state)
    assert apart(fit(two, to, "none", callbacks=[Frozen()], resume=str(path)), straight) < 1e-5


class Thaw(Frozen):
    """Half of the model is trained from a step on."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        pl_module.net.blocks[0].requires_grad_(trainer.global_step >= 6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["soap", "kfac"])
# FSDP2's optimizers get no state for what is frozen when they load: what was trained is to be thawed before.
@pytest.mark.parametrize(
    ("form", "to", "stop"), [("one", "fsdp2", 4), ("fsdp2", "fsdp2", 4), ("fsdp2", "one", 4), ("fsdp2", "one", STOP)]
)
def test_what_is_trained_later_travels_and_is_the_same_on_any_ranks(two, tmp_path, method, form, to, stop):
    path = str(tmp_path / "later.ckpt")
    alone = fit(two, "one", method, callbacks=[Thaw()])
    straight = fit(two, form, method, callbacks=[Thaw(), Save(path, stop)])
    again = fit(two, to, method, callbacks=[Thaw()], resume=path)
    assert alone[0].report.rotated + alone[0].report.preconditioned > 11
    assert apart(straight, alone) < 1e-5
    assert apart(again, alone) < 1e-5


class Cold(Frozen):
    """The optimizer starts without a state."""

    def on_train_start(self, trainer, pl_module) -> None:
        assert not plain(trainer.optimizers[0]).state

    def on_train_end(self, trainer, pl_module) -> None:
        """DeepSpeed counts from the start."""


@needs_deepspeed
@pytest.mark.slow
def test_lightnings_options_keep_their_meaning(two, tmp_path):
    path = tmp_path / "some.ckpt"
    fit(two, "zero3", "none", steps=2, callbacks=[Frozen(exclude_frozen_parameters=True), Save(str(path), 2)])
    state, weights, _ = content(path)
    assert set(weights) == {name for name in weights if "blocks.0" not in name}
    assert len(state) == len(weights)
    fit(two, "one", "none", steps=2, callbacks=[Frozen(), Save(str(path), 1)])
    fit(two, "zero3", "none", steps=2, callbacks=[Cold(load_full_weights=True)], resume=str(path))


class Validated(Module):
    """Is not trained."""

    def validation_step(self, _, index) -> None:
        assert self.net(batch(0)[0]).isfinite().all()


def validated(strategy, path):
    """The weights of a module that a Trainer has read without training it."""
    with unchanged(strategy):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(accelerator="cpu", strategy=made(strategy), devices=2, plugins=[Standing()], **quiet)
        module = Validated(strategy, ADAMW)
        trainer.validate(module, DataLoader(range(1)), ckpt_path=path, verbose=False)
        with whole(trainer, module) as params:
            return {f"net.{name}": value.detach().clone() for name, value in params}


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("to", ["zero2", "zero3"])
def test_a_file_is_read_without_training(two, saved, to):
    _, path = saved("one")
    _, weights, _ = content(path)
    for rank in two.run(validated, to, str(path)):
        assert all(torch.equal(rank[name], value) for name, value in weights.items())


@needs_deepspeed
@pytest.mark.slow
def test_what_deepspeed_cannot_go_on_from_is_refused_by_name(two, saved, tmp_path):
    assert "is a folder of FSDP's pieces" in refused(two, "zero2", resume=str(saved("fsdp2 in pieces")[1]))
    _, path = saved("one")
    assert "has groups of [40] parameters, this run's has [18, 22]" in refused(
        two, "zero2", grouped=True, resume=str(path)
    )
    file, other = torch.load(path, weights_only=True), str(tmp_path / "other.ckpt")
    # One count for all is gone on with: the largest.
    file["optimizer_states"][0]["state"][0]["step"] -= 5
    torch.save(file, other)
    assert apart(fit(two, "zero2", "soap", resume=other), fit(two, "zero2", "soap", resume=str(path))) == 0
    file["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3)
    torch.save(file, other)
    assert "keeps exp_avg of shape (3,)" in refused(two, "zero2", resume=other)
    file["state_dict"]["net.more"] = file["state_dict"].pop("net.blocks.0.up.weight")
    torch.save(file, other)
    text = refused(two, "zero3", resume=other)
    assert "Only in the file: ['net.more']; only in this module: ['net.blocks.0.up.weight']" in text
    del file["state_dict"]
    torch.save(file, other)
    assert "is a file without a 'state_dict'" in refused(two, "zero3", resume=other)


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


@pytest.mark.parametrize(
    "form", [*(pytest.param(f, marks=() if f == "fsdp1" else pytest.mark.slow) for f in FORMS), ZERO3]
)
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


@pytest.mark.slow
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
    "form", [*(pytest.param(f, marks=() if f == "fsdp2 in pieces" else pytest.mark.slow) for f in FORMS), ZERO3]
)
def test_a_save_in_the_middle_of_a_step_holds_the_weights(two, tmp_path, form):
    after, middle = tmp_path / "after.ckpt", tmp_path / "middle.ckpt"
    saves = [Save(str(after), STOP), SaveInside(str(middle), STOP)]
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
        original, before = saving.inside_handler, (engine.host.world.sent, engine.host.world.seconds)
        saving.inside_handler = lambda: True
        try:
            yield
        finally:
            saving.inside_handler = original
        assert (engine.host.world.sent, engine.host.world.seconds) == before

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
    [
        ("fsdp2", torch.optim.AdamW),
        ("fsdp1 in pieces", torch.optim.AdamW),
        ("fsdp1", torch.optim.NAdam),
        pytest.param("zero3", torch.optim.NAdam, marks=needs_deepspeed),
    ],
)
def test_a_signals_handler_saves_without_the_other_ranks(two, tmp_path, form, base):
    path = tmp_path / "signal.ckpt"
    strategy, files = (FORMS | ZERO)[form]
    arguments = (strategy, METHODS["soap"][0], (base, {"lr": 3e-3}), STEPS)
    two.run(train, *arguments, whole_files=files, callbacks=[Signal(str(path), STOP)])
    state, weights, file = content(path)
    matrices = [name for name, value in weights.items() if value.ndim == 2 and min(value.shape) > 1]
    assert len(matrices) > 10
    for name, moments in state.items():
        fresh = not moments["exp_avg"].any() and not moments["exp_avg_sq"].any() and moments["step"] == 0
        assert fresh == (name in matrices), name
        if base is torch.optim.NAdam:
            assert (moments["mu_product"] == 1) == fresh
    assert file["callbacks"][NAME]["engines"][0]["kind"] == "rebuild"
    ends = two.run(train, *arguments, whole_files=files, resume=str(path))
    assert all(bool(value.isfinite().all()) for value in ends[0].weights.values())
    assert apart(ends, ends) == 0
    assert ends[0].report.step == STEPS


class Moments(pl.Callback):
    """By block, this rank's moments as they were loaded."""

    def on_train_start(self, trainer, pl_module) -> None:
        engine = trainer.callbacks[0].engines[0]
        self.found = {
            block.name: engine.host.access.state(engine.optimizer, block.param) for block in engine.plan.blocks
        }
        self.found = {name: (s["exp_avg"].clone(), s["exp_avg_sq"].clone()) for name, s in self.found.items()}


def resumed_from_a_signal(*arguments, **named):
    moments = Moments()
    return train(*arguments, callbacks=[moments], **named), moments.found


@pytest.mark.slow
@needs_deepspeed
def test_a_signals_handler_leaves_no_rotated_moments_in_deepspeeds_folder(two, tmp_path):
    path = str(tmp_path / "signal.ckpt")
    straight = two.run(train, "zero2", *METHODS["soap"], STEPS, callbacks=[Signal(path, STOP)])
    for end, moments in two.run(resumed_from_a_signal, "zero2", *METHODS["soap"], STEPS, resume=path):
        assert len(moments) == 16
        assert any(m.numel() for m, _ in moments.values())
        for first, second in moments.values():
            assert not first.any()
            assert not second.numel() or bool((second == second[0]).all() and second[0] > 0)
        assert end.report.step == STEPS
        assert all(bool(value.isfinite().all()) for value in end.weights.values())
    # Nothing of it is left in the training that went on.
    assert apart(straight, two.run(train, "zero2", *METHODS["soap"], STEPS)) == 0


def test_a_checkpoint_from_before_the_first_step_is_exact(two, tmp_path):
    path = str(tmp_path / "early.ckpt")
    straight = fit(two, "one", "soap", callbacks=[Early(path)])
    assert apart(fit(two, "one", "soap", resume=path), straight) == 0


def refusal(*arguments, **named):
    """What a rank says."""
    try:
        train(*arguments, **named)
    except StateError as error:
        return str(error)
    return None


def refused(world, form, method=METHODS["soap"][0], **arguments):
    """What every rank says, which must be the same."""
    strategy, files = (FORMS | ZERO)[form]
    named = {"steps": STEPS, "whole_files": files, **arguments}
    found = world.run(refusal, strategy, method, ADAMW, **named)
    assert found == found[:1] * len(found)
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if form != "one"])
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
