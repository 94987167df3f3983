"""What is seen of a step, of layers' health and of factors; where it is logged, under every way to train."""

import csv
import math

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_so import KFAC, SOAP, ConfigError, CurvatureMonitor, SecondOrder, Shampoo
from lightning_so.linalg.vectors import Piece, Space
from lightning_so.monitor.layers import layers
from tests.callbacks.test_monitor import ADAMW, Net, Smooth, fit
from tests.support import trainings
from tests.support.daily import daily


class Kept(pl.Callback):
    """The weights before a step, and the gradient it is made of."""

    def __init__(self, step):
        self.step, self.weights, self.grads = step, {}, {}

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == self.step - 1:
            self.weights = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step - 1:
            self.grads = {name: p.grad.clone() for name, p in pl_module.named_parameters()}


def norm(tensors):
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def test_cosine_and_trust_ratio_are_those_of_the_step():
    module, kept = Net(lambda params, lr: torch.optim.AdamW(params, lr=lr)), Kept(12)
    monitor = CurvatureMonitor(every=12, products=0, verbose=False)
    fit(module, [monitor, kept])
    moved = {name: p.detach() - kept.weights[name] for name, p in module.named_parameters()}
    names = list(kept.weights)
    assert set(monitor.watch.steps) == {"", "net.0", "net.1", "net.4"}
    for layer, numbers in {"": range(len(names)), **layers(names, "*", "")}.items():
        of = [[found[names[number]] for number in numbers] for found in (kept.weights, moved, kept.grads)]
        along = sum(float((step * grad).sum()) for step, grad in zip(*of[1:], strict=True))
        seen = monitor.watch.steps[layer]
        assert seen.trust == pytest.approx(norm(of[1]) / norm(of[0]), rel=1e-4)
        assert seen.cosine == pytest.approx(-along / norm(of[1]) / norm(of[2]), rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_plain_gradient_descent_goes_straight_down_whatever_scales_its_loss(accumulate, scaled, fused):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    named = {"plugins": MixedPrecision("16-mixed", "cpu", scaler=scaler)} if scaled else {}
    module = Net(lambda params, lr: torch.optim.SGD(params, lr=lr, fused=fused))
    kept, monitor = Kept(2), CurvatureMonitor(every=2, products=0, verbose=False)
    fit(module, [monitor, kept], steps=2 * accumulate, accumulate_grad_batches=accumulate, **named)
    for step in monitor.watch.steps.values():
        assert step.cosine == pytest.approx(1.0, abs=1e-5)
    # On the CPU, where the loss scale of a fused step is still in the gradient, noise is not measured.
    assert (monitor.watch.noise.weight == 0) == (scaled and fused)
    scale = scaler.get_scale() if scaled and fused else 1.0
    assert monitor.watch.steps[""].trust == pytest.approx(
        0.05 * norm(kept.grads.values()) / scale / norm(kept.weights.values()), rel=1e-4
    )


class Linear(pl.LightningModule):
    """A loss whose gradient is the mean of its samples: signal and noise are known, and no step changes them."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(20))

    def training_step(self, batch, batch_idx):
        return (batch[0] @ self.w).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("accumulate", daily([1, 4], 4))
def test_the_noise_scale_is_the_variance_over_the_squared_mean(accumulate):
    torch.manual_seed(0)
    data = TensorDataset(0.5 + 2.0 * torch.randn(16 * 4 * 240, 20))
    monitor, found = CurvatureMonitor(every=2, products=0, verbose=False), []
    note = pl.callbacks.LambdaCallback(on_train_batch_end=lambda *_: found.append(monitor.watch.noise_scale))
    trainer = pl.Trainer(
        max_epochs=1, accumulate_grad_batches=accumulate, callbacks=[monitor, note], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Linear(), DataLoader(data, batch_size=16))
    expected = 20 * 4.0 / (20 * 0.25)
    assert monitor.watch.samples == 16 * accumulate
    assert sum(found[200:]) / len(found[200:]) == pytest.approx(expected, rel=0.1)


def test_trace_density_and_further_eigenvalues_are_the_hessians():
    module, monitor = Smooth(), CurvatureMonitor(every=12, products=60, top=3, probes=2, verbose=False)
    fit(module, [monitor])
    H, _ = module.hessian()
    seen, space = monitor.last, monitor.spectra[-1]
    values = torch.linalg.eigvalsh(H)
    assert seen.tops == pytest.approx(values.flip(0)[:3].tolist(), abs=1e-6)
    pieces = [Piece(f"net.{name}", 0, p.numel(), p.numel()) for name, p in module.net.named_parameters()]
    starts = [Space(tuple(pieces), dtype=torch.float64).normal(12, probe) for probe in range(2)]
    starts = [start / start.norm() for start in starts]
    assert seen.trace == pytest.approx(len(H) * sum(float(v @ H @ v) for v in starts) / 2, rel=1e-6)
    for power in (1, 2, 3):
        expected = sum(float(v @ torch.linalg.matrix_power(H, power) @ v) for v in starts) / 2
        found = sum(w * x**power for x, w in zip(seen.values, seen.weights, strict=True))
        assert found == pytest.approx(expected, rel=1e-6)
    assert sum(seen.weights) == pytest.approx(1.0)
    assert set(space) == {"step", "values", "weights", "top", "bottom", "trace", "negative", "lr", "noise_scale"}
    assert (space["step"], space["lr"], len(space["values"])) == (12, 0.05, len(seen.values))


@pytest.mark.parametrize("method", [SOAP(start=2, period=2), KFAC(period=2), Shampoo(period=2)])
def test_factors_are_looked_at_a_block_at_a_time(method):
    monitor, ours = CurvatureMonitor(every=2, products=0, verbose=False), SecondOrder(method, print_plan=False)
    base = torch.optim.SGD if isinstance(method, KFAC) else torch.optim.AdamW
    found = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 12:
                for stack in ours.engines[0].stacks:
                    for row, block in enumerate(stack.blocks):
                        kept = [F[row] for key, F in stack.method.factors(stack.stats) if ".factor." in key]
                        found.append((block.name, [F for F in kept if F.ndim > 1 and F.shape[-1] > 1]))

    fit(Net(base), [monitor, ours, Look()], steps=12)
    assert len(monitor.factors) > 1
    name, factors = found[(12 - 1) % len(found)]
    shares, conditions = [], []
    for factor in factors:
        for values in torch.linalg.eigvalsh(factor.double()).reshape(-1, factor.shape[-1]):
            shares.append(float(values.sum() ** 2 / values.square().sum()) / len(values))
            conditions.append(1 / max(float(values[0] / values[-1]), 2.0**-23))
    assert monitor.factors[name].rank == pytest.approx(min(shares))
    assert monitor.factors[name].condition == pytest.approx(max(conditions), rel=1e-6)


# ---------------------------------------------------------------- manual optimization


class Pair(pl.LightningModule):
    """Two optimizers that step by hand, the second one twice; the first layer is dead."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.seen = []
        self.one = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.other = nn.Linear(6, 3)
        self.one[0].bias.data.fill_(-100.0)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.seen.clear()
        for net, optimizer in ((self.one, first), (self.other, second), (self.other, second)):
            loss = nn.functional.cross_entropy(net(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.seen.append(torch.cat([param.grad.reshape(-1) for param in net.parameters()]))

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), lr=lr) for net, lr in ((self.one, 0.1), (self.other, 2.0))]


def test_steps_and_health_are_seen_under_manual_optimization(tmp_path):
    monitor, logger, module = CurvatureMonitor(every=5, products=0, verbose=False), CSVLogger(tmp_path), Pair()
    fit(module, [monitor], logger=logger)
    assert [(one.layer, one.kind) for one in monitor.ill] == [("one.0", "dead")]
    assert monitor.watch.steps["one.2"].cosine == pytest.approx(1.0, abs=1e-5)
    _, first, second = module.seen  # Of two steps the direction is that of both, and the gradient the first.
    along = nn.functional.cosine_similarity(first, first + second, dim=0)
    assert monitor.watch.steps["other"].cosine == pytest.approx(float(along), abs=1e-5)
    assert float(along) < 1 - 1e-4
    logged = read(tmp_path)
    assert logged["health/dead/one.0"] == [1.0] * 12
    assert len(logged["curv/cosine"]) == 12
    with pytest.raises(ConfigError, match=r"products=8\): with manual optimization .* Use products=0"):
        fit(Pair(), [CurvatureMonitor()])


def test_several_steps_a_batch_pass_by_no_look(tmp_path):
    # 36 steps, three a batch: every seventh is within one of five of them.
    fit(Pair(), [CurvatureMonitor(every=70, products=0, verbose=False)], logger=CSVLogger(tmp_path))
    assert len(read(tmp_path)["curv/cosine"]) == 5


# ---------------------------------------------------------------- loggers and bars


def read(folder):
    """Columns of what the CSV logger wrote, without empty cells."""
    rows = list(csv.DictReader(next(folder.rglob("metrics.csv")).open()))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def test_what_is_logged_is_few_scalars_and_one_item_in_the_bar(tmp_path):
    module = Net()
    module.net[2], module.net[4] = nn.ReLU(), nn.Linear(8, 3)
    module.net[1].bias.data.fill_(-100.0)
    monitor, ours = CurvatureMonitor(every=2, verbose=False), SecondOrder(KFAC(period=2), print_plan=False)
    trainer = fit(module, [monitor, ours], logger=CSVLogger(tmp_path), log_every_n_steps=1)
    logged = read(tmp_path)
    of_ours = {name for name in logged if name.startswith(("curv/", "health/"))}
    assert len(of_ours) <= 20
    assert logged["health/dead/net.1"] == logged["health/ill"] == [1.0] * 12
    assert len(logged["curv/cosine_min"]) == len(logged["curv/factor_rank_min"]) == 12
    assert len(logged["curv/trace"]) == 6
    shown = {name for name in trainer.progress_bar_metrics if name != "v_num"}
    assert shown == {"so%", "curv/lr_x_lambda"}


LOGGERS = {
    "tensorboard": lambda folder: pl.loggers.TensorBoardLogger(folder),
    "wandb": lambda folder: pl.loggers.WandbLogger(save_dir=folder, offline=True),
    "mlflow": lambda folder: pl.loggers.MLFlowLogger(tracking_uri=f"sqlite:///{folder}/runs.db"),
}


@pytest.mark.parametrize("kind", LOGGERS)
def test_any_logger_takes_it(kind, tmp_path, monkeypatch):
    pytest.importorskip(kind)
    logger = LOGGERS[kind](tmp_path)
    taken = {}
    original = logger.log_metrics
    monkeypatch.setattr(
        logger, "log_metrics", lambda metrics, step=None: (taken.update(metrics), original(metrics, step))
    )
    fit(Net(), [CurvatureMonitor(every=4, layers="*", verbose=False)], logger=logger)
    assert {"curv/lambda_max", "curv/cosine/net.0", "health/largest_max"} <= set(taken)
    assert any(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())


# ---------------------------------------------------------------- ranks


def seen(strategy, accumulate=1):
    """What is seen of the last step of a short training, and its weights."""
    monitor = CurvatureMonitor(every=2, products=0, verbose=False)
    found = trainings.train(strategy, SOAP(start=2, period=2), ADAMW, 4, accumulate, callbacks=[monitor])
    health = monitor.watch.health
    read = health.names, health.readers, health.numbers().isnan().tolist()
    return monitor.watch.steps, monitor.watch.noise.batches, read, monitor.ill, found.weights


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_ranks_see_the_steps_that_one_process_sees(two, strategy):
    steps, noise, health, ill, weights = seen("one")
    assert any(health[1])  # A layer reads units behind an activation, and FSDP2's hooks do not hide them.
    for found, of_rank, here, sick, same in two.run(seen, strategy):
        assert here == health
        assert sick == ill == []
        assert set(found) == set(steps)
        for layer, step in steps.items():
            assert found[layer].trust == pytest.approx(step.trust, rel=1e-3)
            assert found[layer].cosine == pytest.approx(step.cosine, rel=1e-2, abs=1e-4)
        assert of_rank == pytest.approx(noise, rel=1e-2)
        for name, value in weights.items():
            torch.testing.assert_close(same[name], value, rtol=0, atol=1e-5)
