"""One contract for all methods and layers, by `tests.support.contract`. A new method or layer is one row."""

import pytest
import torch
from torch import nn

from lightning_so import EKFAC, KFAC, SOAP, ConfigError, Muon, Relative, Shampoo, Synchronous
from lightning_so.contract.method import Taps
from lightning_so.core.options import Checks
from lightning_so.layers.registry import lookup
from tests.support import contract

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
    SOAP(start=2, period=2, polish=True),
    SOAP(start=2, period=2, whiten=True),
]
#: Those that are tried every day; the others in the whole suite.
EVERYDAY = [METHODS[number] for number in (0, 3, 6, 8, 10)]
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
        contract.attached(made(name), method)


def test_trains_every_matrix_and_stays_finite(layer, method):
    contract.trains_every_matrix_and_stays_finite(layer, method)


def test_the_scale_of_the_loss_does_not_matter(layer, method):
    contract.the_scale_of_the_loss_does_not_matter(layer, method)


def test_zero_gradients_change_nothing(layer, method):
    contract.zero_gradients_change_nothing(layer, method)


def test_state_round_trip(layer, method):
    contract.state_round_trip(layer, method)


def test_the_first_step_descends(layer, method):
    contract.the_first_step_descends(layer, method)


@pytest.mark.parametrize(
    "cls", {type(method): None for method in METHODS} | {Checks: None}, ids=lambda cls: cls.__name__
)
@pytest.mark.parametrize("wrong", [2.5, True, 0.5, -1])
def test_counts_are_integers_in_a_range(cls, wrong):
    contract.counts_are_integers_in_a_range(cls, wrong)
