"""What a step dispatches does not grow with equal layers, and the host reads one number: the guard's."""

import pytest
import torch

from benchmarks.shared.problems import autoencoder, resnet
from lightning_so import EKFAC, KFAC, SOAP, Muon, Shampoo, Ways
from tests.support.daily import daily
from tests.support.operations import READ, of_steps, of_training

#: The most operations of a step on 12 blocks, views and AdamW's own apart.
MOST = {
    "soap": (SOAP(start=8), 220),
    "muon": (Muon(), 160),
    "shampoo": (Shampoo(), 260),
    "kfac": (KFAC(), 400),
    "ekfac": (EKFAC(start=8), 500),
}

pytestmark = pytest.mark.thread("own")


@pytest.mark.parametrize("name", daily(MOST, "soap", "muon"))
def test_operations_of_a_step(name):
    method, most = MOST[name]
    counts = of_steps(method, 12, lengths="base")
    assert max(count.total() for count in counts) <= most
    assert all(count[READ] == 1 for count in counts)


@pytest.mark.slow
@pytest.mark.parametrize("name", MOST)
def test_operations_do_not_grow_with_equal_layers(name):
    method, most = MOST[name]
    assert max(count.total() for count in of_steps(method, 24, lengths="base")) <= 1.2 * most


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "kfac"])
def test_slopes_take_few_operations_of_a_step_and_no_number_is_read(name):
    """On blocks of a few shapes: at two of eight steps, and a handful at each for the lengths that come of them."""
    method, _ = MOST[name]
    base, measured = (of_steps(method, 4, steps=76, last=8, lengths=lengths) for lengths in ("base", "measured"))
    more = sorted(ours.total() - plain.total() for ours, plain in zip(measured, base, strict=True))
    assert more[5] <= 8
    assert 8 < more[7] <= 90
    assert all(count[READ] == 1 for count in measured)


#: Models of 8 and 9 shapes; and by what share of operations a step of Muon, and of SOAP while it is cold, has fewer
#: where polar factors are padded.
SHAPES = {"autoencoder": (autoencoder, 0.45, 0.6), "cnn": (resnet, 0.33, 0.57)}


@pytest.mark.parametrize("cold", [False, True], ids=["muon", "soap"])
@pytest.mark.parametrize("name", SHAPES)
def test_operations_of_a_step_on_many_shapes(name, cold):
    made, *shares = SHAPES[name]
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def model():
        torch.manual_seed(0)
        return made(64)

    def loss(model):
        return model(images).square().mean()

    method = SOAP(start=100, period=100, cap=1024) if cold else Muon()
    apart, padded = (
        of_training(method, model, loss, steps=3, last=1, ways=Ways(padding=padding), lengths="base")[0]
        for padding in ("apart", "padded")
    )
    assert padded.total() <= shares[cold] * apart.total()
    # Weights are hidden, and updates measured, in one call for all shapes; the guard looks at lengths too.
    assert apart["aten._foreach_zero_.default"] == 1
    assert apart["aten._foreach_norm.Scalar"] == 2
