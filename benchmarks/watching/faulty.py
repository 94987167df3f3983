"""Trainings with one fault each, in three architectures, on scikit-learn's digits: what a report has to find."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.shared.images import digits

STEPS, BATCH = 600, 64
#: Steps of the batch that is not finite, and of the epoch with wrong labels.
NAN, WRONG = 300, range(300, 360)


class Dense(nn.Module):
    """Three layers on the pixels."""

    sick = "second"

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 48), nn.Linear(48, 10)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (B, 8, 8)."""
        return self.last(self.activation(self.second(self.activation(self.first(x.flatten(1))))))


class Convolutional(nn.Module):
    """Two convolutions, the first normalised, and two dense layers."""

    sick = "dense"

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.norm, self.dense, self.last = nn.BatchNorm2d(16), nn.Linear(24 * 4, 48), nn.Linear(48, 10)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (B, 8, 8)."""
        x = F.max_pool2d(self.activation(self.norm(self.conv1(x[:, None]))), 2)
        x = F.max_pool2d(self.activation(self.conv2(x)), 2)
        return self.last(self.activation(self.dense(x.flatten(1))))


class Attending(nn.Module):
    """A block of attention over the rows of an image, and its two dense layers."""

    sick = "up"

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(8, 48), nn.Parameter(torch.randn(8, 48) / 48**0.5)
        self.attention, self.norm = nn.MultiheadAttention(48, 4, batch_first=True), nn.LayerNorm(48)
        self.up, self.down, self.last = nn.Linear(48, 96), nn.Linear(96, 48), nn.Linear(48, 10)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (B, 8, 8)."""
        x = self.embed(x) + self.places
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.down(self.activation(self.up(self.norm(x))))
        return self.last(x.mean(1))


ARCHITECTURES: dict[str, Any] = {"dense": Dense, "convolutional": Convolutional, "attending": Attending}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kinds: Of findings, any of which tells it.
        layer: Whether it is in the layer that is sick, and must be named so.
        inject: Makes a network sick.
        activation: The network's.
        rate: The learning rate.
    """

    kinds: frozenset[str]
    layer: bool = False
    inject: Callable[[nn.Module], None] = lambda net: None
    activation: Callable[[Tensor], Tensor] = F.relu
    rate: float = 1e-3


def _sick(net: Any) -> nn.Linear:
    return getattr(net, net.sick)


@torch.no_grad()
def dead(net: nn.Module) -> None:
    """No sample gets over the biases."""
    _sick(net).bias.fill_(-50.0)


@torch.no_grad()
def saturated(net: nn.Module) -> None:
    """Every sample is far out on tanh."""
    _sick(net).weight.mul_(200.0)


def rank_one(net: nn.Module) -> None:
    """All units are the first, whatever is learnt."""
    layer = _sick(net)

    def forward(x: Tensor) -> Tensor:
        return F.linear(x, layer.weight[:1], layer.bias[:1]).expand(*x.shape[:-1], len(layer.weight))

    layer.forward = forward


def frozen(net: nn.Module) -> None:
    """The gradient does not reach the weights, which are trained as far as the optimizer knows."""
    layer = _sick(net)

    def forward(x: Tensor) -> Tensor:
        return F.linear(x, layer.weight.detach(), layer.bias.detach())

    layer.forward = forward


FAULTS = {
    "dead ReLU layer": Fault(frozenset({"dead"}), True, dead),
    "saturated tanh layer": Fault(frozenset({"saturated"}), True, saturated, torch.tanh),
    "rank-one layer": Fault(frozenset({"collapsed"}), True, rank_one),
    "frozen layer": Fault(frozenset({"frozen"}), True, frozen),
    "exploding rate": Fault(frozenset({"diverged", "exploded", "far"}), rate=3.0),
    "NaN batch": Fault(frozenset({"nan"})),
    "mislabelled epoch": Fault(frozenset({"spike", "plateau"})),
}


class Sick(pl.LightningModule):
    """A training with a fault; without one where that is None."""

    def __init__(self, architecture: str, name: str | None, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fault = FAULTS[name] if name else Fault(frozenset())
        self.name, self.net = name, ARCHITECTURES[architecture](self.fault.activation)
        self.fault.inject(self.net)
        pixels, self.labels = digits().train
        self.pixels = pixels.squeeze(1)
        self.draw = torch.Generator().manual_seed(seed)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of a batch that is drawn here."""
        chosen = torch.randint(0, len(self.pixels), (BATCH,), generator=self.draw)
        pixels, labels = self.pixels[chosen], self.labels[chosen]
        if self.name == "NaN batch" and batch_idx == NAN:
            pixels = pixels * torch.nan
        if self.name == "mislabelled epoch" and batch_idx in WRONG:
            labels = (labels + 1 + batch_idx % 9) % 10
        return F.cross_entropy(self.net(pixels), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.fault.rate)
