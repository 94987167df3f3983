"""A parameter without a gradient is not moved, whatever directions a method takes; one that gets it later is."""

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from lightning_so import (
    OGR,
    AdaHessian,
    AutoStep,
    FewDirections,
    LevenbergMarquardt,
    MatrixFree,
    NewtonCG,
    Nystrom,
    QuadraticModel,
    SaddleEscape,
    SaddleFreeKrylov,
    Sophia,
)
from tests.support.fits import fit

SGD, ADAM = (torch.optim.SGD, {"lr": 0.05}), (torch.optim.AdamW, {"lr": 5e-3})
METHODS = [
    (FewDirections(k=3, every=2), ADAM),
    (OGR(k=2), SGD),
    (AutoStep(every=2), ADAM),
    (QuadraticModel(), SGD),
    (NewtonCG(iterations=3), SGD),
    (SaddleFreeKrylov(m=3), SGD),
    (LevenbergMarquardt(), SGD),
    (Nystrom(rank=2, every=2), SGD),
    (AdaHessian(), ADAM),
    (Sophia(every=2), ADAM),
]


class Later(pl.LightningModule):
    """A layer that has no gradient before a step, and between steps that use it."""

    def __init__(self, base, uses=()):
        super().__init__()
        torch.manual_seed(5)
        self.net, self.later = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)
        self.x, self.y, self.base, self.uses, self.seen = torch.randn(16, 6), torch.randn(16, 3), base, uses, []

    def training_step(self, batch, _):
        used = self.later(self.x) if int(batch) in self.uses else 0.0
        return F.mse_loss(self.net(self.x) + used, self.y)

    def on_train_batch_start(self, batch, _):
        self.seen.append(self.later.weight.detach().clone())

    def configure_optimizers(self):
        return self.base[0](self.parameters(), **self.base[1])


@pytest.mark.parametrize(("method", "base"), METHODS, ids=[type(method).__name__ for method, _ in METHODS])
def test_it_moves_at_the_steps_that_give_it_one(method, base):
    module = Later(base, uses=(4, 6))
    fit(module, MatrixFree(method, verbose=False), steps=8)
    moved = [step for step in range(7) if not torch.equal(module.seen[step], module.seen[step + 1])]
    assert moved == [4, 6]


class Ridge(Later):
    """A saddle that descent does not leave by itself; what is `later` has no gradient."""

    def __init__(self):
        super().__init__((torch.optim.SGD, {"lr": 1e-3}))
        self.w = torch.nn.Parameter(torch.tensor([0.0, 1e-3]))

    def training_step(self, batch, _):
        return (self.w[0].square() - self.w[1].square()) / 2 + self.w[1] ** 4 / 4 + 1


def test_an_escape_from_a_saddle_does_not_move_it():
    module, escape = Ridge(), SaddleEscape(every=2, verbose=False)
    fit(module, escape, steps=8)
    assert escape.escapes > 0
    assert all(torch.equal(seen, module.later.weight) for seen in module.seen)
    assert torch.equal(module.net.weight, Ridge().net.weight)
