"""Inputs, targets and losses of a user's own class of tensors train as plain ones do.

PINA's LabelTensor (mathLab/PINA), MONAI's MetaTensor and torchvision's tv_tensors are such classes: their functions
read labels and meta data, which what we make of an input has not.
"""

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from lightning_so import (
    EKFAC,
    KFAC,
    SOAP,
    AdaHessian,
    FewDirections,
    LevenbergMarquardt,
    MatrixFree,
    NewtonCG,
    SecondOrder,
    attach,
)
from tests.support.fits import fit

SGD, ADAM = (torch.optim.SGD, {"lr": 0.05}), (torch.optim.AdamW, {"lr": 1e-2})
LAYERS = [
    (KFAC(period=2), SGD),
    (KFAC(fisher="sampled", period=2), SGD),
    (EKFAC(period=2, start=2), ADAM),
    (SOAP(period=2, start=2), ADAM),
]
VECTOR = [
    (NewtonCG(), SGD),
    (NewtonCG(curvature="hessian"), SGD),
    (LevenbergMarquardt(), SGD),
    (FewDirections(k=2, every=2), SGD),
    (AdaHessian(), ADAM),
]


def refused(*_, **__):
    raise AttributeError("labels")


class Labelled(torch.Tensor):
    """Refuses what tensors with labels refuse where the labels are lost: indexing, copies, other shapes."""

    __getitem__ = clone = detach = flatten = reshape = view = requires_grad_ = __deepcopy__ = refused


def data():
    torch.manual_seed(0)
    return torch.randn(16, 6, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)


class Module(pl.LightningModule):
    def __init__(self, base, kind):
        super().__init__()
        (x, y), self.base = data(), base
        self.x, self.y = x.as_subclass(kind), y.as_subclass(kind)
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()

    def loss(self):
        return F.mse_loss(self.net(self.x), self.y)

    def training_step(self, batch, _):
        return self.loss().as_subclass(torch.Tensor)  # Lightning takes copies of it.

    def configure_optimizers(self):
        return self.base[0](self.parameters(), **self.base[1])


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.net.parameters()])


@pytest.mark.thread("Project-MONAI/MONAI#4699")
@pytest.mark.parametrize(("method", "base"), LAYERS + VECTOR, ids=str)
def test_a_trainer(method, base):
    found = []
    for kind in (torch.Tensor, Labelled):
        module = Module(base, kind)
        ours = SecondOrder(method, print_plan=False) if (method, base) in LAYERS else MatrixFree(method, verbose=False)
        fit(module, ours, steps=6)
        found.append(weights(module))
    assert torch.equal(*found)


@pytest.mark.thread("Project-MONAI/MONAI#4699")
@pytest.mark.parametrize(("method", "base"), LAYERS + VECTOR, ids=str)
def test_a_loop(method, base):
    found = []
    for kind in (torch.Tensor, Labelled):
        module = Module(base, kind)
        optimizer = module.configure_optimizers()
        engine = attach(module, optimizer, method)

        def closure(module=module, optimizer=optimizer, engine=engine):
            optimizer.zero_grad()
            loss = module.loss()
            if (method, base) in LAYERS:
                engine.before_backward(loss)
            loss.backward()
            return loss

        for _ in range(6):
            optimizer.step(closure)
        found.append(weights(module))
    assert torch.equal(*found)
