"""Copies of modules while K-FAC's hooks are on them: a teacher, an average of weights, a file of the whole module."""

import copy
import io
import pickle

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from lightning_so import EKFAC, KFAC, SecondOrder, attach
from tests.callbacks.test_second_order import fit


class Attends(nn.Module):
    """A linear layer, and an attention, whose matrices are heard otherwise."""

    def __init__(self):
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(6, 6), nn.MultiheadAttention(6, 2), nn.Linear(6, 5)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.attention(x, x, x, need_weights=False)[0])


class Distilled(pl.LightningModule):
    """Learns from a copy of itself, through a layer before it that learns as well."""

    def __init__(self, when):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.adapt, self.when, self.teacher = Attends(), nn.Linear(6, 6), when, []
        self.copied("init")

    def copied(self, when):
        if when == self.when:
            self.teacher[:] = [copy.deepcopy(self.net).requires_grad_(False)]

    def on_train_start(self):
        self.copied("start")

    def training_step(self, data, index):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(index))
        return self.net(x).square().mean() + F.mse_loss(self.teacher[0](self.adapt(x)), torch.ones(4, 5))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


# huggingface/accelerate#1971: the copy's hook is the original's.
@pytest.mark.parametrize(
    "method", [KFAC(period=4), EKFAC(period=4), KFAC(period=4, fisher="sampled")], ids=["kfac", "ekfac", "sampled"]
)
def test_a_teacher_that_is_copied_while_layers_are_watched_tells_us_nothing(method):
    ends, counts = [], []
    for when in ("init", "start"):
        model, ours = Distilled(when), SecondOrder(method, print_plan=False)
        fit(model, [ours])
        ends.append(model.state_dict())
        counts.append(ours.engines[0].report.preconditioned)
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    assert counts[0] == counts[1] > 4


class Keeps(pl.Callback):
    """Copies the module, and writes it, in the middle of a training."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 8:
            assert pl_module.net.first._forward_hooks
            self.copy, self.pickled, self.file = copy.deepcopy(pl_module), pickle.dumps(pl_module), io.BytesIO()
            torch.save(pl_module, self.file)


# Lightning-AI/pytorch-lightning#17124: `torch.save(pl_module)` in a callback.
@pytest.mark.parametrize("method", [KFAC(period=1), EKFAC(period=1)], ids=["kfac", "ekfac"])
def test_a_module_can_be_copied_and_written_while_it_trains(method):
    plain, model, keeps = Distilled("init"), Distilled("init"), Keeps()
    fit(plain, [SecondOrder(method, print_plan=False)], length=10)
    fit(model, [SecondOrder(method, print_plan=False), keeps], length=10)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)
    # What reads it need not know us.
    assert b"lightning_so" not in keeps.pickled
    keeps.file.seek(0)
    copies = keeps.copy, pickle.loads(keeps.pickled), torch.load(keeps.file, weights_only=False)
    for one in copies:
        fit(one, [SecondOrder(method, print_plan=False)], length=4)
        torch.testing.assert_close(one.state_dict(), copies[0].state_dict(), rtol=0, atol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(copies[0].state_dict(), model.state_dict(), rtol=0, atol=0)


def shallow(layer, own):
    """A copy with the same hooks, and with the same weights or frozen ones of its own, as replicas have."""
    twin = copy.copy(layer)
    if own:
        twin._parameters = {name: nn.Parameter(p.detach(), requires_grad=False) for name, p in layer.named_parameters()}
    return twin


def through(model, make):
    """The weights after six steps with a loss that `make` gives."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = attach(model, optimizer, KFAC(period=1))
    for number in range(6):
        optimizer.zero_grad()
        make(torch.randn(8, 4, generator=torch.Generator().manual_seed(number))).backward()
        optimizer.step()
    assert engine.report.preconditioned == 2
    return model.state_dict()


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


def test_a_shallow_copy_has_the_weights_and_is_heard():
    plain, model = layers(), layers()
    expected = through(plain, lambda x: plain(x).square().mean())
    twins = through(model, lambda x: nn.Sequential(*(shallow(m, own=False) for m in model))(x).square().mean())
    torch.testing.assert_close(twins, expected, rtol=0, atol=0)


def test_a_shallow_copy_with_weights_of_its_own_is_not_heard():
    ends = []
    for hooked in (False, True):
        model = layers()

        def loss(x, model=model, hooked=hooked):
            hidden = model[:2](x)
            frozen = shallow(model[2], own=True)
            if not hooked:
                frozen._forward_hooks = {}
            return model[2](hidden).square().mean() + frozen(hidden).sum()

        ends.append(through(model, loss))
    torch.testing.assert_close(*ends, rtol=0, atol=0)
