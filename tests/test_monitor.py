"""A training that is watched is the same training, and what is seen is the curvature of its loss."""

import math

import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_so import KFAC, SOAP, ConfigError, CurvatureMonitor, SecondOrder
from tests import trainings

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})


class Net(pl.LightningModule):
    """Everything that remembers: dropout, BatchNorm, a metric, logged values."""

    def __init__(self, base=torch.optim.SGD):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3, bias=False)
        )
        self.accuracy, self.base = torchmetrics.Accuracy("multiclass", num_classes=3), base

    def training_step(self, batch, batch_idx):
        x, y = batch
        found = self.net(x)
        loss = nn.functional.cross_entropy(found, y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.accuracy(found, y)
        self.log("accuracy", self.accuracy, on_epoch=True, on_step=False)
        return {"loss": loss}

    def configure_optimizers(self):
        return self.base(self.parameters(), lr=0.05)


def fit(module, callbacks, steps=12, **named):
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(96, 6), torch.randint(3, (96,)))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=steps,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"logger": False, **named},
    )
    trainer.fit(module, DataLoader(data, batch_size=8, shuffle=True))
    return trainer


@pytest.mark.parametrize("method", [None, SOAP(start=4, period=2), KFAC(period=2), KFAC(period=2, fisher="sampled")])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_that_is_watched_is_the_same_bit_for_bit(method, accumulate):
    ends = []
    for watching in (False, True):
        base = torch.optim.AdamW if isinstance(method, SOAP) else torch.optim.SGD
        ours = [] if method is None else [SecondOrder(method, print_plan=False)]
        monitor = CurvatureMonitor(every=2, layers="*", verbose=False)
        callbacks = [monitor] if watching else []
        module = Net(base)
        trainer = fit(module, [*callbacks, *ours], accumulate_grad_batches=accumulate)
        assert (monitor.last is not None) == watching
        assert list(monitor.last_of) == (["net.0", "net.1", "net.4"] if watching else [])
        logged = {k: v for k, v in trainer.callback_metrics.items() if not k.startswith(("so/", "curv/", "so%"))}
        reports = [engine.report.portable() for callback in ours for engine in callback.engines]
        grads = {name: p.grad for name, p in module.named_parameters()}
        ends.append((module.state_dict(), logged, reports, grads, torch.get_rng_state(), torch.rand(3)))
    for plainly, watched in zip(*ends, strict=True):
        torch.testing.assert_close(watched, plainly, rtol=0, atol=0)


class Smooth(Net):
    """No dropout: its Hessian can be computed from outside, in float64."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.seen = None

    def training_step(self, batch, batch_idx):
        self.seen = batch[0].double(), batch[1]
        return nn.functional.cross_entropy(self.net(self.seen[0]), self.seen[1])

    def hessian(self):
        names, shapes = zip(*((name, p.shape) for name, p in self.net.named_parameters()), strict=True)
        flat = torch.cat([p.detach().reshape(-1) for p in self.net.parameters()])

        def loss(w):
            parts = w.split([shape.numel() for shape in shapes])
            found = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
            return nn.functional.cross_entropy(
                torch.func.functional_call(self.net, found, (self.seen[0],)), self.seen[1]
            )

        return torch.func.hessian(loss)(flat), torch.func.grad(loss)(flat)


def test_what_is_seen_is_the_hessians(capsys):
    module, monitor = Smooth(), CurvatureMonitor(every=12, products=60)
    fit(module, [monitor])
    H, g = module.hessian()
    values, vectors = torch.linalg.eigh(H)
    seen = monitor.last
    assert abs(seen.top - float(values[-1])) < 1e-5
    assert abs(seen.bottom - float(values[0])) < 1e-5
    assert seen.bottom < 0 < seen.negative < 1
    assert abs(seen.distance - abs(float(g @ vectors[:, -1])) / seen.top) < 1e-4
    assert "products by forward differences of gradients" in capsys.readouterr().out


@pytest.mark.parametrize(("every", "layer", "numbers"), [(12, "net.0", slice(56)), (6, "net.2", slice(56, None))])
def test_a_layers_turn_shows_its_diagonal_block(every, layer, numbers):
    module, monitor = Smooth(), CurvatureMonitor(every=every, products=60, layers=["net.?"])
    fit(module, [monitor])
    H, g = (found[(numbers,) * found.ndim] for found in module.hessian())
    values, vectors = torch.linalg.eigh(H)
    assert len(monitor.last_of) == 12 // every
    seen = monitor.last_of[layer]
    assert abs(seen.top - float(values[-1])) < 1e-5
    assert abs(seen.bottom - float(values[0])) < 1e-5
    assert abs(seen.distance - abs(float(g @ vectors[:, -1])) / seen.top) < 1e-4


def test_everything_is_logged_and_nothing_of_the_users_is_twice(tmp_path):
    logger = CSVLogger(tmp_path)
    monitor = CurvatureMonitor(every=4, layers=["net.0", "net.4"], verbose=False)
    fit(Net(), [monitor], logger=logger, log_every_n_steps=1)
    rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    head = rows[0].split(",")
    for name in ("lambda_max", "lambda_min", "neg_mass", "lr_x_lambda", "distance"):
        found = [float(row.split(",")[head.index(f"curv/{name}")] or math.nan) for row in rows[1:]]
        assert sum(map(math.isfinite, found)) == 3
    for name, often in (("max/net.0", 2), ("min/net.0", 2), ("max/net.4", 1)):
        assert sum(bool(row.split(",")[head.index(f"curv/lambda_{name}")]) for row in rows[1:]) == often
    assert sum(bool(row.split(",")[head.index("loss_step")]) for row in rows[1:]) == 12


def test_a_step_that_remembers_is_told():
    class Remembers(Net):
        def training_step(self, batch, batch_idx):
            self.count = getattr(self, "count", 0) + 1
            return self.count * super().training_step(batch, batch_idx)["loss"]

    with pytest.raises(ConfigError, match="the same training step twice"):
        fit(Remembers(), [CurvatureMonitor(every=2, verbose=False)])


def test_a_loss_that_is_no_scalar_is_told():
    class Several(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)["loss"]
            return loss if self.trainer.global_step < 2 else torch.stack([loss, loss])

    # The step itself is right; from the look on it gives two numbers.
    with pytest.raises(ConfigError, match=r"training_step: the loss has shape \(2,\) and a graph"):
        fit(Several(), [CurvatureMonitor(every=2, verbose=False)])


def test_what_cannot_be_watched_is_refused():
    class Manual(Net):
        automatic_optimization = False

    with pytest.raises(ConfigError, match="manual optimization"):
        fit(Manual(), [CurvatureMonitor()])
    with pytest.raises(ConfigError, match=r"CurvatureMonitor\(every=0\)"):
        CurvatureMonitor(every=0)
    with pytest.raises(ConfigError, match=r"'net.9' fits no layer .*'net.0', 'net.1', 'net.4'"):
        fit(Net(), [CurvatureMonitor(layers=["net.*", "net.9"])])


def watched(strategy):
    """The last sight of a short training, and its weights."""
    # Four ranks have three rows of that layer.
    monitor = CurvatureMonitor(every=4, products=20, layers="*.narrow", verbose=False)
    found = trainings.train(strategy, SOAP(start=2, period=2), ADAMW, 4, callbacks=[monitor])
    return monitor.last, monitor.last_of["net.narrow"], found.weights


@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp2", *(pytest.param(s, marks=pytest.mark.slow) for s in ("ddp_so", "hsdp", "fsdp1"))]
)
def test_ranks_see_what_one_process_sees(two, four, strategy):
    one, layer, weights = watched("one")
    world = four if strategy == "hsdp" else two
    for seen, of_layer, same in world.run(watched, strategy):
        assert abs(seen.top / one.top - 1) < 1e-3
        assert abs(seen.bottom - one.bottom) < 1e-3 * one.top
        assert abs(seen.distance / one.distance - 1) < 2e-2
        assert abs(of_layer.top / layer.top - 1) < 1e-3
        assert abs(of_layer.bottom - layer.bottom) < 1e-3 * layer.top
        for name, value in weights.items():
            torch.testing.assert_close(same[name], value, rtol=0, atol=1e-5)
