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
from tests.support import trainings
from tests.support.daily import daily

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
        max_epochs=1,
        limit_train_batches=steps,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"accelerator": "cpu", "logger": False, **named},
    )
    trainer.fit(module, DataLoader(data, batch_size=8, shuffle=True))
    return trainer


@pytest.mark.parametrize("method", [None, SOAP(start=4, period=2), KFAC(period=2), KFAC(period=2, fisher="sampled")])
@pytest.mark.parametrize("accumulate", daily([1, 2], 2))
def test_a_training_that_is_watched_is_the_same_bit_for_bit(method, accumulate):
    ends = []
    for watching in (False, True):
        base = torch.optim.AdamW if isinstance(method, SOAP) else torch.optim.SGD
        ours = [] if method is None else [SecondOrder(method, print_plan=False)]
        product = "exact" if accumulate == 1 else "difference"
        monitor = CurvatureMonitor(every=2, layers="*", product=product, verbose=False)
        callbacks = [monitor] if watching else []
        module = Net(base)
        trainer = fit(module, [*callbacks, *ours], accumulate_grad_batches=accumulate)
        assert (monitor.last is not None) == watching
        assert list(monitor.last_of) == (["net.0", "net.1", "net.4"] if watching else [])
        logged = {
            k: v for k, v in trainer.callback_metrics.items() if not k.startswith(("so/", "curv/", "so%", "health/"))
        }
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


@pytest.mark.parametrize(
    ("product", "limit", "said"),
    [
        ("auto", 1e-10, "products by double backward"),
        ("difference", 1e-5, "by forward differences of gradients"),
    ],
)
def test_what_is_seen_is_the_hessians(product, limit, said, capsys):
    module, monitor = Smooth(), CurvatureMonitor(every=12, products=60, product=product)
    fit(module, [monitor])
    H, g = module.hessian()
    values, vectors = torch.linalg.eigh(H)
    seen = monitor.last
    assert abs(seen.top - float(values[-1])) < limit
    assert abs(seen.bottom - float(values[0])) < limit
    assert seen.bottom < 0 < seen.negative < 1
    assert abs(seen.distance - abs(float(g @ vectors[:, -1])) / seen.top) < 10 * limit
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("product", ["exact", "difference"])
@pytest.mark.parametrize(("every", "layer", "numbers"), [(12, "net.0", slice(56)), (6, "net.2", slice(56, None))])
def test_a_layers_turn_shows_its_diagonal_block(every, layer, numbers, product):
    module, monitor = Smooth(), CurvatureMonitor(every=every, products=60, layers=["net.?"], product=product)
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


@pytest.mark.parametrize(
    ("product", "said"),
    [
        ("auto", "the same training step twice"),
        ("exact", "the same loss twice is not the same"),
    ],
)
def test_a_step_that_remembers_is_told(product, said):
    class Remembers(Net):
        def training_step(self, batch, batch_idx):
            self.count = getattr(self, "count", 0) + 1
            return self.count * super().training_step(batch, batch_idx)["loss"]

    with pytest.raises(ConfigError, match=said):
        fit(Remembers(), [CurvatureMonitor(every=2, product=product, verbose=False)])


class Attention(Smooth):
    """With torch's fused attention, whose kernel on the CPU has no second derivative."""

    def training_step(self, batch, batch_idx):
        x, y = batch[0].double(), batch[1]
        x = self.net(nn.functional.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None])[0, 0])
        x = x[None, None]
        return nn.functional.cross_entropy(nn.functional.scaled_dot_product_attention(x, x, x)[0, 0], y)


def test_where_there_is_no_double_backward_it_is_said_and_differences_are_taken(capsys):
    monitor = CurvatureMonitor(every=6)
    fit(Attention(), [monitor])
    out = capsys.readouterr().out
    assert "no double backward here (derivative for aten::_scaled_dot_product" in out
    assert "products by forward differences" in out
    assert out.count("no double backward") == 1
    assert monitor.last.top > 0
    with pytest.raises(ConfigError, match=r'CurvatureMonitor: there is no double backward here .*product="difference"'):
        fit(Attention(), [CurvatureMonitor(every=6, product="exact")])


def test_of_a_gradient_that_jumps_it_is_said_what_differences_are_worth(capsys):
    module = Net()
    module.net = nn.Sequential(nn.Linear(6, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 3))
    fit(module, [CurvatureMonitor(every=6, product="difference")])
    assert "the gradient jumps" in capsys.readouterr().out


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
    with pytest.raises(ConfigError, match=r"product must be one of \['auto', 'exact', 'difference'\]"):
        CurvatureMonitor(product="magic")
    with pytest.raises(ConfigError, match=r"'net.9' fits no layer .*'net.0', 'net.1', 'net.4'"):
        fit(Net(), [CurvatureMonitor(layers=["net.*", "net.9"])])


def watched(strategy, product):
    """The last sight of a short training, and its weights."""
    # Four ranks have three rows of that layer.
    monitor = CurvatureMonitor(every=2, products=20, layers="*.narrow", product=product, verbose=False)
    found = trainings.train(strategy, SOAP(start=2, period=2), ADAMW, 4, callbacks=[monitor])
    return monitor.last, monitor.last_of["net.narrow"], found.weights


@pytest.mark.parametrize(
    ("strategy", "product"),
    [
        ("ddp", "exact"),
        pytest.param("fsdp2", "auto", marks=pytest.mark.slow),
        *(pytest.param(s, "difference", marks=pytest.mark.slow) for s in ("ddp", "ddp_so", "hsdp", "fsdp1")),
    ],
)
def test_ranks_see_what_one_process_sees(request, strategy, product):
    one, layer, weights = watched("one", "exact" if product == "exact" else "difference")
    world = request.getfixturevalue("four" if strategy == "hsdp" else "two")
    near = 1e-4 if product == "exact" else 1e-3
    for seen, of_layer, same in world.run(watched, strategy, product):
        assert abs(seen.top / one.top - 1) < near
        assert abs(seen.bottom - one.bottom) < near * one.top
        assert abs(seen.distance / one.distance - 1) < 20 * near
        assert abs(of_layer.top / layer.top - 1) < near
        assert abs(of_layer.bottom - layer.bottom) < near * layer.top
        for name, value in weights.items():
            torch.testing.assert_close(same[name], value, rtol=0, atol=1e-5)
