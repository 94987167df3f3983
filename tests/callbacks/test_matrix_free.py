"""Methods on the whole vector in real trainings: any number of ranks, resumed, beside others; nothing else changes."""

import copy
import csv
import functools
import io
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_so import (
    KFAC,
    OGR,
    SOAP,
    AdaHessian,
    AutoStep,
    ConfigError,
    FewDirections,
    MatrixFree,
    NewtonCG,
    Nystrom,
    QuadraticModel,
    SaddleFreeKrylov,
    SecondOrder,
    Sophia,
    StateError,
    attach,
)
from tests.callbacks.test_monitor import Net, fit
from tests.support import trainings
from tests.support.daily import daily
from tests.support.peers import needs_deepspeed
from tests.together.test_zero_products import SMALL, Options

#: The rarest look is every fifth step: there is one before the stop, and one after it.
STEPS, STOP = 8, 4
SGD, ADAMW = (torch.optim.SGD, {"lr": 0.1}), (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
METHODS = {
    "few": (FewDirections(k=4, every=1, cap=2.0), ADAMW),
    "regression": (OGR(k=2, cap=2.0), SGD),
    "same batch": (OGR(k=2, cap=2.0, curvature="same-batch", every=2), ADAMW),
    "auto": (AutoStep(every=2), ADAMW),
    "model": (QuadraticModel(), SGD),
    "krylov": (SaddleFreeKrylov(m=3), SGD),
    "nystrom": (Nystrom(rank=4, every=5), SGD),
    "newton": (NewtonCG(iterations=12), SGD),
    "newton sliced": (NewtonCG(iterations=20, slice=2), SGD),
    "adahessian": (AdaHessian(), (torch.optim.AdamW, {"lr": 0.02, "eps": 1e-4, "weight_decay": 0.1})),
    "diagonal": (AdaHessian("diagonal", every=2), (torch.optim.Adam, {"lr": 1e-3, "eps": 1e-3, "weight_decay": 0.1})),
    "sophia": (Sophia(every=3), ADAMW),
}


def trained(strategy, name, beside=None, product="difference", **options):
    method, base = METHODS[name]
    callback = MatrixFree(method, verbose=False, product=product)
    if beside is not None and not isinstance(method, QuadraticModel):
        base = ADAMW
    options = {"dtype": torch.float64, "steps": STEPS, **options}
    found = trainings.train(strategy, beside, base, callbacks=[callback], **options)
    assert callback.engine.memory.counts.refused == callback.engine.memory.counts.skipped == 0
    return found.weights, callback.engine.scalars(), callback.engine.memory.counts


@functools.cache
def one(name, **options):
    """What one process does, trained once for all strategies."""
    return trained("one", name, **options)


@functools.cache
def of_the_base(name):
    """The weights without the method."""
    return trainings.train("one", None, METHODS[name][1], STEPS, dtype=torch.float64).weights


def same(found, expected, tolerance):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance)


#: All methods under DDP and FSDP2, of each kind one under the others.
PAIRS = [
    *((strategy, name) for strategy in ("ddp", "fsdp2") for name in METHODS),
    *(("hsdp", name) for name in ("few", "newton sliced", "adahessian")),
    *(("fsdp1", name) for name in ("few", "newton sliced", "krylov", "sophia")),
]
FAST = ("ddp", "few")


@pytest.mark.parametrize(
    ("strategy", "name"), [pair if pair == FAST else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS]
)
def test_ranks_take_the_steps_of_one_process(request, strategy, name):
    expected, scalars, counts = one(name)
    assert any((of_the_base(name)[key] - value).abs().max() > 1e-4 for key, value in expected.items())
    world = request.getfixturevalue("four" if strategy == "hsdp" else "two")
    for found, theirs, done in world.run(trained, strategy, name):
        same(found, expected, 1e-6)
        # A forward pass of pieces has a backward pass behind it, and counts as an evaluation.
        assert done.evaluations + done.forwards == counts.evaluations + counts.forwards
        for key in scalars.keys() - {"curv/evaluations", "curv/forwards"}:
            assert theirs[key] == pytest.approx(scalars[key], rel=1e-4, abs=1e-7)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize(
    ("stage", "name"),
    [(0, "few"), (1, "few"), (1, "newton sliced"), (2, "sophia"), (3, "model"), (3, "sophia")],
)
def test_ranks_of_deepspeed_take_the_steps_of_one_process(two, stage, name):
    options = {"dtype": torch.float32, "steps": 6}
    expected, *_ = one(name, **options)
    for found, *_ in two.run(trained, f"zero{stage}", name, **options):
        same(found, expected, 1e-4)


def accumulated(strategy):
    return trained(strategy, "few", dtype=torch.float32, steps=6, accumulate=2)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_accumulates_and_is_resumed(two, stage, tmp_path):
    expected, _, counts = accumulated("one")
    for found, _, done in two.run(accumulated, f"zero{stage}"):
        same(found, expected, 1e-4)
        assert done == counts
    for expected, found in two.run(resumed, f"zero{stage}", "few", tmp_path / "saved.ckpt", None, torch.float32):
        same(found, expected, 0)


@dataclass(frozen=True)
class Watching(FewDirections):
    """Measures as its parent does, and leaves every step to the base."""

    def update(self, state, step):
        super().update(state, step)


def watched(ours):
    """With weights that stage 3 keeps gathered."""
    free = [MatrixFree(Watching(k=2, every=2), verbose=False)] if ours else []
    found = trainings.train("zero3", None, ADAMW, 6, callbacks=[Options(SMALL), *free])
    assert all(callback.engine.memory.counts.evaluations > 0 for callback in free)
    return found.weights


@pytest.mark.slow
@needs_deepspeed
def test_deepspeed_goes_on_as_if_nothing_had_been_looked_at(two):
    for plainly, looked in zip(*(two.run(watched, ours) for ours in (False, True)), strict=True):
        torch.testing.assert_close(looked, plainly, rtol=0, atol=0)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("beside", [None, SOAP(start=4, period=2), KFAC(period=2, fisher="sampled")])
def test_nothing_else_of_a_training_changes(beside, accumulate):
    ends = []
    for method in (None, Watching(k=2, every=2)):
        base = torch.optim.AdamW if isinstance(beside, SOAP) else torch.optim.SGD
        ours = [] if beside is None else [SecondOrder(beside, print_plan=False)]
        free = [] if method is None else [MatrixFree(method, verbose=False)]
        module = Net(base)
        trainer = fit(module, [*ours, *free], accumulate_grad_batches=accumulate, gradient_clip_val=0.5)
        assert all(callback.engine.memory.counts.evaluations > 0 for callback in free)
        logged = {k: v for k, v in trainer.callback_metrics.items() if not k.startswith(("so/", "curv/", "so%"))}
        reports = [engine.report.portable() for callback in ours for engine in callback.engines]
        grads = {name: p.grad for name, p in module.named_parameters()}
        ends.append((module.state_dict(), logged, reports, grads, torch.get_rng_state()))
    for plainly, watched in zip(*ends, strict=True):
        torch.testing.assert_close(watched, plainly, rtol=0, atol=0)


def test_a_known_gradient_is_not_computed_again():
    evaluations = []
    for accumulate in (1, 2):
        callback = MatrixFree(FewDirections(k=2, every=2), verbose=False)
        fit(Net(), [callback], accumulate_grad_batches=accumulate)
        evaluations.append((callback.engine.memory.counts.steps, callback.engine.memory.counts.evaluations))
    # At the first look the gradient again and two differences; one evaluation a product, or two.
    assert evaluations == [(12, 3 + 6), (6, 3 + 2 * 3)]


class Save(pl.Callback):
    def __init__(self, path, at):
        self.path, self.at = path, at

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.at:
            trainer.save_checkpoint(self.path)


def resumed(strategy, name, path, other=None, dtype=torch.float64):
    """A training that was saved at `STOP`, and the same gone on with from there, maybe by another strategy."""
    method, base = METHODS[name]
    named = {"dtype": dtype, "steps": STEPS}
    callbacks = [MatrixFree(method, verbose=False), Save(path, STOP)]
    expected = trainings.train(strategy, None, base, callbacks=callbacks, whole_files=True, **named).weights
    again = MatrixFree(method, verbose=False)
    found = trainings.train(other or strategy, None, base, callbacks=[again], resume=path, whole_files=True, **named)
    return expected, found.weights


@pytest.mark.parametrize("name", daily(METHODS, "krylov", "few"))
def test_a_resumed_training_is_the_same_bit_for_bit(tmp_path, name):
    expected, found = resumed("one", name, tmp_path / "saved.ckpt")
    same(found, expected, 0)


@pytest.mark.slow
def test_a_sharded_training_is_resumed_too(two, tmp_path):
    for expected, found in two.run(resumed, "fsdp2", "few", tmp_path / "saved.ckpt"):
        same(found, expected, 0)
    # The file of two ranks' pieces holds whole vectors, for one process as well.
    again = MatrixFree(METHODS["few"][0], verbose=False)
    named = {"dtype": torch.float64, "steps": STEPS, "resume": tmp_path / "saved.ckpt"}
    same(trainings.train("one", None, ADAMW, callbacks=[again], **named).weights, expected, 1e-6)


def test_a_state_of_another_method_or_model_is_refused():
    def engine(method, wide=3):
        model = nn.Linear(4, wide)
        return attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method)

    state = engine(FewDirections(k=2)).state_dict()
    with pytest.raises(StateError, match=r"the state is of FewDirections\(k=2"):
        engine(FewDirections(k=3)).load_state_dict(state)
    with pytest.raises(StateError, match="parameters differ between the state and this run: bias, weight"):
        engine(FewDirections(k=2), wide=2).load_state_dict(state)
    with pytest.raises(StateError, match="state format is 7"):
        engine(FewDirections(k=2)).load_state_dict({"format": 7})
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["method"] == state["method"]


@dataclass(frozen=True)
class Several(FewDirections):
    """Takes two products at once, and the forms of two directions."""

    found: ClassVar[list] = []

    def update(self, state, step):
        comm = step.oracle._vector.comm
        V, sent = torch.stack([step.space.normal(0), step.space.normal(1)]), [comm.sent]
        products = step.oracle.products(V)
        sent.append(comm.sent)
        forms = step.oracle.forms(V, V)
        sent.append(comm.sent)
        alone = [(step.oracle.products(v[None])[0], step.oracle.forms(V, v[None])[0]) for v in V]
        self.found.append((products, forms, alone, [after - before for before, after in pairwise(sent)]))


class Alike(Net):
    """The same batch on every rank."""

    def training_step(self, batch, batch_idx):
        x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6)
        return self.net(x).square().sum() + self.net(x).sin().sum()


def several(parallel):
    """On this rank: two products at once under DDP, beside each alone."""
    Several.found.clear()
    module = Alike()
    module.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with trainings.unchanged("ddp"):
        trainer = pl.Trainer(
            accelerator="cpu",
            strategy=trainings.made("ddp", None),
            devices=2,
            plugins=[trainings.Standing()],
            max_steps=2,
            callbacks=[MatrixFree(Several(k=2, every=1), parallel=parallel, verbose=False)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(range(4)))
    return list(Several.found)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [False, True])
def test_directions_at_once_are_directions_one_by_one(two, parallel):
    for found in two.run(several, parallel):
        for products, forms, alone, sent in found:
            for number in range(2):
                torch.testing.assert_close(products[number], alone[number][0], rtol=1e-6, atol=1e-8)
                torch.testing.assert_close(forms[number], alone[number][1], rtol=1e-6, atol=1e-8)
            # Of products in parallel two vectors of 83 numbers; of forms two numbers for each of two directions.
            assert sent == [2 * 83 * 8 * parallel, 2 * 2 * 8]


def test_pieces_cannot_be_probed_in_parallel(two):
    with pytest.raises(AssertionError, match="parallel=True has ranks evaluate apart"):
        two.run(pieces)


def pieces():
    trainings.train("fsdp2", None, SGD, 2, callbacks=[MatrixFree(FewDirections(k=2, every=1), parallel=True)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("few", SOAP(start=2, period=2)),
        ("few", KFAC(fisher="empirical", period=2)),
        ("model", KFAC(fisher="empirical", period=2)),
    ],
)
def test_it_goes_with_methods_on_layers(two, name, beside):
    expected, *_ = trained("one", name, beside)
    for found, _, _ in two.run(trained, "ddp", name, beside):
        same(found, expected, 1e-6)


def looped(ranks):
    """The weights of a plain loop, K-FAC and few directions in it, by rank where there are several."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    wrapped = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inner = attach(model, optimizer, KFAC(fisher="empirical", period=2))
    engine = attach(wrapped, optimizer, FewDirections(k=3, every=2))
    for step in range(10):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).double()
        part = x[dist.get_rank() :: ranks] if ranks > 1 else x

        def closure(part=part):
            optimizer.zero_grad()
            loss = wrapped(part).sin().square().sum(1).mean()
            inner.before_backward(loss)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert engine.memory.counts.evaluations == 3 + 5
    found = [p.detach().clone() for p in model.parameters()]
    engine.detach()
    inner.detach()
    return found


def test_a_plain_loop_on_two_ranks_is_one_on_one(two):
    expected = looped(1)
    for found in two.run(looped, 2):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_a_quadratic_model_damps_kfac():
    callback, ours = (
        MatrixFree(QuadraticModel(initial=0.5), verbose=False),
        SecondOrder(KFAC(fisher="empirical", period=2), print_plan=False),
    )
    fit(Net(), [ours, callback])
    damping = callback.engine.scalars()["curv/damping"]
    assert damping != 0.5
    stats = [stack.stats for stack in ours.engines[0].stacks]
    assert all(stat.rule == pytest.approx(damping, rel=0.3) and stat.rule != 0.002 for stat in stats)


def test_what_it_does_is_seen(tmp_path, capsys):
    logger = CSVLogger(tmp_path)
    callback = MatrixFree(FewDirections(k=2, every=2))
    trainer = fit(Net(), [callback], logger=logger, log_every_n_steps=4)
    rows = list(csv.DictReader((tmp_path / "lightning_logs/version_0/metrics.csv").open()))
    for name in ("curv/lambda_max", "curv/lambda_min", "curv/distance", "curv/age", "curv/evaluations"):
        assert sum(bool(row[name]) for row in rows) == 3
        assert trainer.callback_metrics[name] == pytest.approx(callback.engine.scalars()[name])
    told = capsys.readouterr().out
    assert "MatrixFree: FewDirections(k=2" in told
    assert "remembers 5 vectors" in told
    assert "FewDirections: products by" in told


@pytest.mark.parametrize("first", [False, True])
def test_a_second_fit_finds_the_strategy_as_it_was(first):
    ours, callback = (
        SecondOrder(KFAC(fisher="empirical", period=2), print_plan=False),
        MatrixFree(AutoStep(), verbose=False),
    )
    module = Net()
    trainer = fit(module, [callback, ours] if first else [ours, callback])
    assert not {"optimizer_step", "teardown"} & trainer.strategy.__dict__.keys()
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(24, 6), torch.randint(3, (24,))), batch_size=8))
    assert callback.engine.memory.counts.steps == 3
    assert not {"optimizer_step", "teardown"} & trainer.strategy.__dict__.keys()


def test_a_step_that_is_not_finite_is_left_to_the_base():
    class Broken(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)["loss"]
            return loss * float("nan") if batch_idx == 3 else loss

    callback = MatrixFree(FewDirections(k=2, every=1), verbose=False)
    fit(Broken(), [SecondOrder(KFAC(fisher="empirical"), print_plan=False), callback])
    assert callback.engine.memory.counts.skipped == 1
    assert callback.engine.memory.counts.steps == 11
    assert all(value.isfinite().all() for value in callback.engine.state.vectors.values())


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="SOAP is no method on the whole parameter vector"):
        MatrixFree(SOAP())
    with pytest.raises(ConfigError, match=r"whole parameter vector; put it into MatrixFree\(FewDirections"):
        SecondOrder(FewDirections())
    with pytest.raises(ConfigError, match="QuadraticModel finds the momentum itself"):
        fit(Net(torch.optim.AdamW), [MatrixFree(QuadraticModel())])
    with pytest.raises(ConfigError, match=r"OGR\(gamma=2.0\)"):
        OGR(gamma=2.0)

    class Manual(Net):
        automatic_optimization = False

    with pytest.raises(ConfigError, match="manual optimization"):
        fit(Manual(), [MatrixFree(AutoStep())])

    model = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match="LBFGS moves the weights several times"):
        attach(model, torch.optim.LBFGS(model.parameters()), AutoStep())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = attach(model, optimizer, AutoStep())
    with pytest.raises(ConfigError, match=r"call `optimizer.step\(closure\)`"):
        optimizer.step()
    with pytest.raises(ConfigError, match="already has a method attached"):
        attach(model, optimizer, FewDirections(k=2))
    with pytest.raises(ConfigError, match="attach methods on layers and matrices before"):
        attach(model, optimizer, KFAC(fisher="empirical"))
    engine.detach()
    with pytest.raises(ConfigError, match="takes no options"):
        attach(model, optimizer, AutoStep(), lag=1)
    optimizer.step()


def test_after_it_left_the_optimizer_is_alone():
    ends = []
    for ours in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if ours:
            engine = attach(model, optimizer, FewDirections(k=2, every=1))
            copy.deepcopy(engine.state_dict())
            engine.detach()
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
        ends.append(model.weight.detach().clone())
    assert torch.equal(*ends)
