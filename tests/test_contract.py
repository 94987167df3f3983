"""One contract for all methods and layers: what every pairing must do. A new method or layer is one row."""

import copy

import pytest
import torch
from torch import nn

from lightning_so import SOAP, Muon, Synchronous, attach

METHODS = [
    SOAP(start=4, period=2),
    SOAP(start=0, period=1, schedule=Synchronous()),
    SOAP(start=4, period=2, cap=3),
    Muon(),
    Muon(precision="bf16"),
]
LAYERS = {
    "linear": lambda: nn.Linear(7, 5),
    "conv1d": lambda: nn.Conv1d(3, 4, 3),
    "conv2d": lambda: nn.Conv2d(3, 4, 3),
    "conv2d-channels-last": lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
    "conv2d-grouped": lambda: nn.Conv2d(4, 4, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(2, 3, 2),
    "convtranspose": lambda: nn.ConvTranspose2d(3, 4, 2),
    "lstm": lambda: nn.LSTM(4, 3),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "transposed-weight": lambda: transposed(),
}


def transposed():
    layer = nn.Linear(7, 5)
    layer.weight = nn.Parameter(torch.randn(7, 5).t())
    assert not layer.weight.is_contiguous()
    return layer


def attached(layer, method, **arguments):
    optimizer = torch.optim.AdamW(layer.parameters(), **{"lr": 1e-2, "weight_decay": 0.0, **arguments})
    return optimizer, attach(layer, optimizer, method)


def walk(layer, optimizer, steps, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in layer.parameters():
            # As autograd does: the gradient has the strides of the parameter.
            p.grad = torch.empty_like(p).copy_(scale * torch.randn(p.shape, generator=generator))
        optimizer.step()


@pytest.fixture(params=list(LAYERS))
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]()


@pytest.fixture(params=METHODS, ids=lambda m: str(m).split("(")[0] + f"-{METHODS.index(m)}")
def method(request):
    return request.param


def test_trains_every_matrix_and_stays_finite(layer, method):
    before = copy.deepcopy(layer.state_dict())
    optimizer, engine = attached(layer, method)
    walk(layer, optimizer, 12)
    report = engine.report
    assert report.rotated + report.bent == len(engine.plan.blocks) > 0
    assert report.step == 12
    assert report.failures == report.undone == report.skipped == 0
    for key, value in layer.state_dict().items():
        assert value.shape == before[key].shape
        assert value.stride() == before[key].stride()
        assert bool(value.isfinite().all())
        assert not torch.equal(value, before[key])


def test_the_scale_of_the_loss_does_not_matter(layer, method):
    # Adam is scale-free but for eps; curvature must not bring the scale back in.
    twin = copy.deepcopy(layer)
    for model, scale in ((layer, 1.0), (twin, 64.0)):
        optimizer, _ = attached(model, method, eps=1e-30)
        walk(model, optimizer, 3, scale)
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


def test_zero_gradients_change_nothing(layer, method):
    before = copy.deepcopy(layer.state_dict())
    optimizer, _ = attached(layer, method)
    walk(layer, optimizer, 8, scale=0.0)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_state_round_trip(layer, method):
    optimizer, engine = attached(layer, method)
    walk(layer, optimizer, 7)
    twin = copy.deepcopy(layer)
    other, again = attached(twin, method)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.load_state_dict(engine.state_dict())
    for model, base in ((layer, optimizer), (twin, other)):
        walk(model, base, 7, seed=1)
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_first_step_descends(layer, method):
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer, _ = attached(layer, method)
    generator = torch.Generator().manual_seed(0)
    grads = {p: torch.randn(p.shape, generator=generator) for p in layer.parameters()}
    walk(layer, optimizer, 1)
    for p, old in zip(layer.parameters(), before, strict=True):
        # A rotated gradient is plain again only through the change: compare with the one that was drawn.
        assert float(((p - old).detach() * grads[p]).sum()) < 0
