"""Digits under noise, for a perceptron, a residual network with BatchNorm and a vision transformer; their pixels coded.

Noise is drawn anew with each image: there is always something left to learn, and no end of a run is near zero.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.anywhere.drawing import generator, summed
from benchmarks.shared.images import Batch, digits
from benchmarks.shared.problems import Problem, autoencoder, bernoulli, classification, image_problem, resnet

#: Deviation of the noise, where pixels are from 0 to 1.
NOISE = 0.5


def noisy(name: str, make: Callable[[int], nn.Module], batch_size: int, steps: int) -> Problem:
    """Which digit it is; scored on every image of the training part, under a noise of its own."""
    clear = image_problem(name, digits, batch_size, steps, make, classification, "cross-entropy")

    def disturbed(batch: Batch, generator: torch.Generator) -> Batch:
        return batch[0] + NOISE * torch.randn(batch[0].shape, generator=generator), batch[1]

    held = [disturbed(digits().train, generator())]
    return replace(clear, batch=lambda generator: disturbed(clear.batch(generator), generator), held=held)


def perceptron(pixels: int) -> nn.Module:
    """Two hidden layers of 256."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


class VisionTransformer(nn.Module):
    """Two blocks of torch's own encoder over 16 patches of 2x2 pixels, whose mean is classified."""

    def __init__(self, _: int, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        layers = [
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        ]
        self.blocks = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, 1, 8, 8) -> (B, 10)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def classify_mean() -> Problem:
    """A perceptron, the cross-entropy's mean over the batch."""
    return noisy("classify_mean", perceptron, 512, 700)


def classify_sum() -> Problem:
    """The same, its sum."""
    return summed(classify_mean())


def residual() -> Problem:
    """ResNet-8 with BatchNorm."""
    return noisy("residual", resnet, 128, 400)


def vision_transformer() -> Problem:
    """Attention over patches."""
    return noisy("vision_transformer", VisionTransformer, 64, 350)


def bernoulli_pixels() -> Problem:
    """The deep autoencoder, tanh, 64-500-250-125-30 and back; cross-entropy of pixels, summed over an image's.

    Scored by what of the loss is above the entropy of the pixels themselves, which no code can go below.
    """
    made = image_problem("bernoulli_pixels", digits, 256, 400, autoencoder, bernoulli, "nats above the pixels' own")

    def excess(model: nn.Module, batch: Batch) -> Tensor:
        pixels = batch[0].flatten(1)
        own = -(torch.xlogy(pixels, pixels) + torch.xlogy(1 - pixels, 1 - pixels)).sum(1).mean()
        return bernoulli(model, batch) - own

    return replace(made, held=[digits().train], score=excess)
