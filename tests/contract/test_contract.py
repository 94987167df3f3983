"""One contract for all methods and layers: what every pairing must do. A new method or layer is one row."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from lightning_so import EKFAC, KFAC, SOAP, ConfigError, Muon, Relative, Shampoo, Synchronous, attach
from lightning_so.contract.method import Taps
from lightning_so.core.options import Checks
from lightning_so.layers.registry import lookup
from tests.support import noted

METHODS = [
    SOAP(start=4, period=2),
    SOAP(start=0, period=1, schedule=Synchronous()),
    SOAP(start=4, period=2, cap=3),
    Muon(),
    Muon(precision="bf16"),
    KFAC(period=2),
    KFAC(period=1, damping=Relative(0.1), exact=True, cap=4),
    KFAC(period=2, sharing="reduce"),
    EKFAC(start=4, period=2),
    EKFAC(start=0, period=1, cap=4, sharing="reduce"),
    Shampoo(period=2),
    Shampoo(period=1, merge=True, cap=3, schedule=Synchronous()),
    Shampoo(period=2, beta=1.0, power=2),
    Shampoo(period=2, whiten=True),
]
#: Those that are tried every day; the others in the whole suite.
EVERYDAY = [METHODS[number] for number in (0, 3, 5, 6, 8, 10)]
#: By layer, how it is made and the shape of its input.
LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (6, 7)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), (2, 3, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 5, 5)),
    "conv2d-channels-last": (lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), (2, 3, 5, 5)),
    "conv2d-grouped": (lambda: nn.Conv2d(4, 4, 3, groups=2), (2, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "convtranspose": (lambda: nn.ConvTranspose2d(3, 4, 2), (2, 3, 4, 4)),
    "lstm": (lambda: nn.LSTM(4, 3), (5, 2, 4)),
    # Without biases: the gradient of the keys' is rounding alone, which Adam makes steps of; beside a key of zeros it
    # is not.
    "attention": (lambda: nn.MultiheadAttention(8, 2, bias=False), (5, 2, 8)),
    "attention-biased": (lambda: nn.MultiheadAttention(8, 2, add_zero_attn=True, batch_first=True), (5, 2, 8)),
    "linear-sequence": (lambda: nn.Linear(7, 5), (2, 3, 7)),
    "embedding": (lambda: nn.Embedding(9, 5), (4, 3)),
    "layernorm": (lambda: nn.LayerNorm(5), (4, 3, 5)),
    "rmsnorm": (lambda: nn.RMSNorm(5), (4, 5)),
    "groupnorm": (lambda: nn.GroupNorm(2, 4), (3, 4, 5)),
    "batchnorm": (lambda: nn.BatchNorm2d(4), (3, 4, 5, 5)),
    "transposed-weight": (lambda: transposed(), (6, 7)),
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
    """Steps on random inputs and targets, the loss multiplied by `scale`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        (scale * loss(layer, generator)).backward()
        optimizer.step()
    noted.ran([optimizer._lightning_so], "one", noted.LOOP)


def seeded():
    return torch.Generator().manual_seed(0)


def loss(layer, generator):
    x = torch.randn(layer.shape, generator=generator)
    if isinstance(layer, nn.Embedding):
        x = (9 * torch.rand(layer.shape, generator=generator)).long()
    out = layer(x, x, x)[0] if isinstance(layer, nn.MultiheadAttention) else layer(x)
    out = out[0] if isinstance(out, tuple) else out
    return (out - torch.randn(out.shape, generator=generator)).square().mean()


def made(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make()
    layer.shape = shape
    return layer


def refused(name, method):
    """Whether a method can do nothing for a layer: then it says so by name."""
    if method.taps is Taps.ROWS:
        return not lookup(made(name)) or (isinstance(method, EKFAC) and name == "rmsnorm")
    return "norm" in name or (isinstance(method, Muon) and name == "embedding")


PAIRINGS = [(name, method) for name in LAYERS for method in METHODS]
GOOD = [pairing for pairing in PAIRINGS if not refused(*pairing)]
BAD = [pairing for pairing in PAIRINGS if refused(*pairing)]


def label(pairing):
    name, method = pairing
    return f"{name}-{type(method).__name__}-{METHODS.index(method)}"


def marked(pairing):
    return pytest.param(pairing, marks=() if pairing[1] in EVERYDAY else pytest.mark.slow)


@pytest.fixture(params=map(marked, GOOD), ids=map(label, GOOD))
def pairing(request):
    return request.param


@pytest.fixture
def layer(pairing):
    return made(pairing[0])


@pytest.fixture
def method(pairing):
    return pairing[1]


@pytest.mark.parametrize(("name", "method"), BAD, ids=map(label, BAD))
def test_a_pairing_that_cannot_work_is_refused_by_name(name, method):
    reason = "one fused call: no rows; SOAP, Shampoo or Muon work on it|fewer than two dimensions"
    with pytest.raises(ConfigError, match=reason + "|Muon bends hidden matrices only|neither side has a basis"):
        attached(made(name), method)


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
    for key, value in layer.named_parameters():
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
    grads = dict(
        zip(layer.parameters(), torch.autograd.grad(loss(layer, seeded()), list(layer.parameters())), strict=True)
    )
    walk(layer, optimizer, 1)
    # A rotated gradient is plain again only through the change: compare with the one that was drawn. A weight and its
    # bias are one block, which descends as a whole.
    changes = [(p - old).detach() * grads[p] for p, old in zip(layer.parameters(), before, strict=True)]
    assert sum(float(change.sum()) for change in changes) < 0


@pytest.mark.parametrize(
    "cls", {type(method): None for method in METHODS} | {Checks: None}, ids=lambda cls: cls.__name__
)
@pytest.mark.parametrize("wrong", [2.5, True, 0.5, -1])
def test_counts_are_integers_in_a_range(cls, wrong):
    counts = [field.name for field in dataclasses.fields(cls) if field.type in (int, int | None)]
    assert counts
    for name in counts:
        with pytest.raises(ConfigError, match=rf"{cls.__name__}\({name}={wrong}\): {name} must be an integer in \["):
            cls(**{name: wrong})
