"""What passes leave behind is taken back: metrics that are the loss, attributes of modules, containers."""

from collections import deque

import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from torch.nn import functional as F

from lightning_so import (
    OGR,
    AdaHessian,
    AutoStep,
    CurvatureMonitor,
    FewDirections,
    LevenbergMarquardt,
    MatrixFree,
    NewtonCG,
    QuadraticModel,
    SaddleEscape,
    SaddleFreeKrylov,
    SharpnessGuard,
)
from lightning_so.probe.side_effects import undone
from tests.support.fits import fit

SGD, ADAM = (torch.optim.SGD, {"lr": 0.05}), (torch.optim.AdamW, {"lr": 1e-2})
#: Those that watch and change nothing first.
CALLBACKS = {
    "monitor": (lambda: CurvatureMonitor(every=3, verbose=False, product="difference"), ADAM),
    "saddle": (lambda: SaddleEscape(every=4, flat=1.0, verbose=False), ADAM),
    "sharpness": (lambda: SharpnessGuard(every=3, verbose=False), ADAM),
    "directions": (lambda: MatrixFree(FewDirections(k=2, every=3), verbose=False), ADAM),
    "auto": (lambda: MatrixFree(AutoStep(every=3), verbose=False), ADAM),
    "adahessian": (lambda: MatrixFree(AdaHessian(every=3), verbose=False, product="auto"), ADAM),
    "ogr": (lambda: MatrixFree(OGR(curvature="same-batch", every=3), verbose=False), SGD),
    "quadratic": (lambda: MatrixFree(QuadraticModel(), verbose=False), SGD),
    "krylov": (lambda: MatrixFree(SaddleFreeKrylov(m=3), verbose=False), SGD),
    "newton": (lambda: MatrixFree(NewtonCG(curvature="hessian", iterations=3), verbose=False), SGD),
    "gauss-newton": (lambda: MatrixFree(NewtonCG(iterations=3), verbose=False), SGD),
    "levenberg": (lambda: MatrixFree(LevenbergMarquardt(), verbose=False), SGD),
}
EVERY_DAY = ("monitor", "saddle", "directions", "auto")
NAMES = [name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.slow) for name in CALLBACKS]


class MetricLoss(pl.LightningModule):
    """A metric is the loss, as chemprop's criterion is: its state is in the graph of the last step."""

    def __init__(self, base):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.base = torch.nn.Linear(4, 1), base
        self.criterion, self.listed = torchmetrics.MeanSquaredError(), torchmetrics.CatMetric()
        self.x, self.y = torch.randn(12, 16, 4), torch.randn(12, 16, 1)

    def training_step(self, batch, _):
        loss = self.criterion(self.net(self.x[int(batch)]), self.y[int(batch)])
        self.listed.update(loss)
        return loss

    def configure_optimizers(self):
        return self.base[0](self.parameters(), **self.base[1])


def trained(base, *callbacks):
    module = MetricLoss(base)
    fit(module, *callbacks, steps=12)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_that_is_the_loss_is_as_it_would_be_without_evaluations(name):
    make, base = CALLBACKS[name]
    callback = make()
    module = trained(base, callback)
    assert callback.engine.memory.counts.steps == 12 if isinstance(callback, MatrixFree) else callback.evaluations > 0
    assert int(module.criterion.total) == 12 * 16
    assert module.criterion._update_count == 12
    assert len(module.listed.value) == 12
    if isinstance(callback, MatrixFree):
        assert all(bool(param.isfinite().all()) for param in module.parameters())
        return
    alone = trained(base)
    assert torch.equal(module.net.weight, alone.net.weight)
    assert torch.equal(module.criterion.compute(), alone.criterion.compute())
    assert torch.equal(module.listed.compute(), alone.listed.compute())


@pytest.mark.parametrize("written", [True, False])
def test_a_metrics_state_keeps_its_graph(written):
    criterion, weight = torchmetrics.MeanSquaredError(), torch.ones(3, requires_grad=True)
    criterion(2 * weight, torch.zeros(3))
    before = criterion._forward_cache
    with torch.no_grad(), undone(criterion, [weight]):
        if written:
            before.mul_(3.0)
        with torch.enable_grad():
            criterion(weight, torch.zeros(3))
    assert (criterion._forward_cache is before) is not written
    assert float(criterion.compute()) == float(criterion._forward_cache) == 4.0
    criterion._forward_cache.backward()
    torch.testing.assert_close(weight.grad, 8 * weight.detach() / 3)


class Remembers(torch.nn.Module):
    """Writes what comes into attributes of every kind."""

    def __init__(self):
        super().__init__()
        self.count, self.last, self.seen = 0, None, [0]
        self.table, self.names, self.queue = {"a": 1}, {"a"}, deque([1, 2], maxlen=2)

    def forward(self, x):
        self.count, self.last = self.count + 1, x
        self.seen.append(self.count)
        self.table["b"] = self.count
        self.table.pop("a", None)
        self.names.add("b")
        self.queue.append(3)
        self.new = x
        return x


def test_attributes_are_bound_to_what_they_were_and_containers_hold_what_they_did():
    module = torch.nn.Sequential(Remembers(), torch.nn.Linear(2, 2))
    first = module[0]
    held = first.seen, first.table, first.names, first.queue
    with undone(module, []):
        module(torch.ones(1, 2))
        assert first.count == 1
    assert (first.count, first.last, hasattr(first, "new")) == (0, None, False)
    assert held == ([0], {"a": 1}, {"a"}, deque([1, 2], maxlen=2))
    assert all(one is other for one, other in zip(held, (first.seen, first.table, first.names, first.queue)))


def test_attributes_come_back_after_an_error_too():
    module = Remembers()

    def fails():
        with undone(module, []):
            module(torch.ones(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert module.seen == [0]


def test_a_training_step_that_counts_itself_counts_its_steps():
    class Counts(MetricLoss):
        def training_step(self, batch, _):
            self.calls = getattr(self, "calls", 0) + 1
            return F.mse_loss(self.net(self.x[int(batch)]), self.y[int(batch)])

    module = Counts(ADAM)
    fit(module, MatrixFree(AutoStep(every=2), verbose=False), CurvatureMonitor(every=2, verbose=False), steps=6)
    assert module.calls == 6
