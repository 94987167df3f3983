"""Trainings where second order is known to disappoint are told, once; others are not."""

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_so import SOAP, SecondOrder
from lightning_so.callbacks import caveats


class Net(pl.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def said(net, batch=16, steps=3, **named):
    """What is said of a training, by `SecondOrder`."""
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[SecondOrder(SOAP(), print_plan=False)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **named,
    )
    data = DataLoader(TensorDataset(torch.randn(64, 12)), batch_size=batch)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer.fit(Net(net), data)
    return [str(each.message) for each in found if "See docs/when-not.md" in str(each.message)]


def fresh():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 12), nn.BatchNorm1d(12))


def used(net):
    with torch.no_grad():
        net[1].weight.mul_(torch.rand(24))
        net.train()(torch.randn(8, 12))
    return net


def test_a_usual_training_is_told_nothing():
    assert said(fresh()) == []


def test_a_pretrained_model_that_is_trained_whole_is_told_once():
    (line,) = said(used(fresh()), steps=6)
    assert line.startswith(
        "SecondOrder: the whole of a pretrained model is trained (1 is not as it begins)".replace("(1", "(net.1")
    )


def test_so_is_one_whose_configuration_has_a_path():
    net = fresh()
    net.config = type("Config", (), {"_name_or_path": "someone/bert"})()
    (line,) = said(net)
    assert "'someone/bert' was loaded into net" in line


def test_one_of_which_little_is_trained_is_not():
    net = used(fresh())
    net[0].requires_grad_(False)
    net[1].requires_grad_(False)
    assert caveats.trained_share(net) < 0.52
    net.add_module("more", nn.Linear(12, 1).requires_grad_(False))
    assert said(net) == []


def test_one_that_goes_on_is_not():
    assert caveats.of_model(used(fresh()), [], step=100) == []


class Lora(nn.Module):
    """A frozen matrix, and what is learnt beside it: as PEFT has it."""

    def __init__(self, width, rank):
        super().__init__()
        self.weight = nn.Linear(width, width).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)

    def forward(self, x):
        return self.weight(x) + self.lora_B(self.lora_A(x))


def test_factors_of_a_low_rank():
    torch.manual_seed(0)
    first, last = nn.Linear(12, 64).requires_grad_(False), nn.Linear(64, 8)
    (line,) = said(nn.Sequential(first, Lora(64, 4), nn.Tanh(), Lora(64, 4), last))
    assert "pairs of factors of a low rank" in line
    assert "(net.1.lora_A.weight: 4x64, net.1.lora_B.weight: 64x4)" in line


@pytest.mark.parametrize(
    "layers",
    [
        [(12, 128), (128, 128), (128, 4)],
        [(12, 200), (200, 8), (8, 200), (200, 12)],
        [(12, 4), (4, 12), (12, 4)],
    ],
    ids=["narrow ends", "one bottleneck", "small"],
)
def test_small_layers_are_no_factors(layers):
    torch.manual_seed(0)
    widths = [part for n_in, n_out in layers for part in (nn.Linear(n_in, n_out), nn.Tanh())]
    assert said(nn.Sequential(*widths)) == []


@pytest.mark.parametrize(
    ("batch", "named", "told"), [(2, {}, 2), (2, {"accumulate_grad_batches": 4}, None), (8, {}, None)]
)
def test_tiny_batches(batch, named, told):
    lines = said(fresh(), batch, **named)
    assert [f"a step sees {told} samples" in line for line in lines] == ([] if told is None else [True])


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.zeros(5, 3), 5),
        ([torch.zeros(5, 3), torch.zeros(5)], 5),
        ({"input_ids": torch.zeros(2, 64, dtype=torch.long), "mask": torch.zeros(2, 64, dtype=torch.bool)}, 128),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)), 2),
        ({"scale": torch.tensor(1.0), "x": torch.zeros(7, 1)}, 7),
        ("a graph", None),
        ([], None),
    ],
    ids=["tensor", "pair", "tokens", "images", "a number first", "text", "nothing"],
)
def test_samples_of_a_batch(batch, count):
    assert caveats.samples(batch) == count
