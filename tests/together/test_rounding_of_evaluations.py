"""What is evaluated beside a step is the function of the weights, and not its rounding (TF32), whatever torch is told.

Differences of rounded gradients are noise: the emulated device says how much of it.
"""

from functools import cache

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from lightning_so import CurvatureMonitor, attach, spectrum
from tests.callbacks.test_monitor import fit
from tests.core.test_vector_oracle import Asking
from tests.support.rounding import TensorCores


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    torch.set_float32_matmul_precision("highest")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def example(model, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 8, generator=generator).to(dtype), torch.randint(3, (32,), generator=generator)
    return F.cross_entropy(model(x), y)


@cache
def derivatives():
    """Gradient and dense Hessian, by double backward in float64."""
    model = network().double()
    params = list(model.parameters())

    def flat(x, **more):
        return torch.cat([g.flatten() for g in torch.autograd.grad(x, params, **more)])

    gradient = flat(example(model, torch.float64), create_graph=True)
    return gradient.detach(), torch.stack([flat(x, retain_graph=True) for x in gradient])


def off(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def asked(ask, product):
    """What a method on the whole vector is answered while torch is told to round."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = attach(model, optimizer, Asking(ask), product=product)

    def closure():
        optimizer.zero_grad()
        loss = example(model)
        loss.backward()
        return loss

    torch.set_float32_matmul_precision("medium")
    with TensorCores():
        optimizer.step(closure)
    engine.detach()
    return engine.method.found[0]


@pytest.mark.parametrize(("product", "bound"), [("difference", 5e-3), ("exact", 1e-6)])
def test_evaluations_are_not_rounded(product, bound):
    def ask(step):
        v = step.space.normal(0)
        return v, step.oracle.products(v[None])[0], step.oracle.here

    v, found, here = asked(ask, product)
    gradient, H = derivatives()
    assert off(found, H @ v.double()) < bound
    # Nor is the gradient that they are compared with, though the training's was.
    assert off(here, gradient) < 1e-6


@pytest.mark.parametrize("product", ["difference", "exact"])
def test_spectra_are_those_of_the_function_and_not_of_its_rounding(product):
    torch.set_float32_matmul_precision("medium")
    with TensorCores() as cores:
        found = spectrum(model := network(), lambda: example(model), steps=20, probes=1, product=product)
    L = torch.linalg.eigvalsh(derivatives()[1])
    assert (found.top, found.bottom) == (pytest.approx(float(L[-1]), rel=1e-3), pytest.approx(float(L[0]), rel=1e-3))
    assert not cores.ours


class Still(pl.LightningModule):
    """Stays where it is."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def training_step(self, batch, batch_idx):
        return example(self.net)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("product", ["difference", "exact"])
def test_a_monitor_sees_the_function_and_not_its_rounding(product):
    torch.set_float32_matmul_precision("medium")
    monitor = CurvatureMonitor(every=1, products=20, product=product, verbose=False)
    with TensorCores():
        fit(Still(), [monitor], steps=1)
    top = float(torch.linalg.eigvalsh(derivatives()[1])[-1])
    assert monitor.last.top == pytest.approx(top, rel=1e-3)
