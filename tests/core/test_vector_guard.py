"""A gradient that is not finite is kept from the optimizer behind which a method on the whole vector stands."""

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from lightning_so import KFAC, OGR, AdaHessian, AutoStep, FewDirections, MatrixFree, NewtonCG, SecondOrder, attach
from tests.support.fits import fit

SGD, ADAM = (torch.optim.SGD, {"lr": 0.1}), (torch.optim.AdamW, {"lr": 1e-2})
METHODS = [
    (OGR(), SGD),
    (FewDirections(k=2, every=2), SGD),
    (AutoStep(), ADAM),
    (NewtonCG(damping=0.1), SGD),
    (AdaHessian(), ADAM),
]
IDS = [type(method).__name__ for method, _ in METHODS]
#: The step whose gradient is poisoned, from 0.
POISONED = 5


class Poisoned(pl.LightningModule):
    """Notes its weights before every step; one gradient becomes what it should not be after the backward pass."""

    def __init__(self, base, value):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.base, self.value = torch.nn.Linear(8, 3), base, value
        self.x, self.y, self.before = torch.randn(16, 8), torch.randint(0, 3, (16,)), []

    def training_step(self, batch, _):
        return F.cross_entropy(self.net(self.x), self.y)

    def configure_optimizers(self):
        return self.base[0](self.parameters(), **self.base[1])

    def on_after_backward(self):
        self.before.append(self.net.weight.detach().clone())
        if len(self.before) == POISONED + 1:
            self.net.weight.grad[0, 0] = self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("method", "base"), METHODS, ids=IDS)
def test_a_trainer_leaves_the_step_out_and_counts_it(method, base, value):
    module, callback = Poisoned(base, value), MatrixFree(method, verbose=False)
    fit(module, callback, steps=9)
    assert torch.equal(module.before[POISONED + 1], module.before[POISONED])
    assert not torch.equal(module.before[POISONED + 2], module.before[POISONED])
    assert bool(module.net.weight.isfinite().all())
    assert callback.engine.memory.counts.skipped == 1


def test_methods_on_layers_before_it_count_the_step_once():
    module, layers = Poisoned(SGD, float("nan")), SecondOrder(KFAC(), print_plan=False)
    callback = MatrixFree(FewDirections(k=2, every=2), verbose=False)
    fit(module, layers, callback, steps=9)
    assert torch.equal(module.before[POISONED + 1], module.before[POISONED])
    assert layers.engines[0].report.skipped == 1
    assert bool(module.net.weight.isfinite().all())


@pytest.mark.parametrize(("method", "base"), METHODS, ids=IDS)
def test_a_loop_leaves_the_step_out_and_has_its_gradients_back(method, base):
    torch.manual_seed(0)
    net, x, y = torch.nn.Linear(8, 3), torch.randn(16, 8), torch.randint(0, 3, (16,))
    optimizer = base[0](net.parameters(), **base[1])
    engine, steps = attach(net, optimizer, method), 0

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        if steps == POISONED:
            net.bias.grad[1] = float("nan")
        return loss

    for steps in range(9):
        before = net.weight.detach().clone()
        optimizer.step(closure)
        assert torch.equal(before, net.weight) is (steps == POISONED)
        assert bool(net.bias.grad.isnan().any()) is (steps == POISONED)
    assert engine.memory.counts.skipped == 1
    assert all(bool(p.isfinite().all()) for p in net.parameters())
