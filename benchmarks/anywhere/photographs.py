"""Photographs at twice their resolution: scikit-learn's two, grey, by a sub-pixel network (Shi and others 2016)."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.anywhere.drawing import generator, summed
from benchmarks.shared.problems import Problem, seeded

#: Of a patch, in pixels of the sharp photograph.
SIDE = 32


@cache
def photographs() -> Tensor:
    """Both photographs, in [0, 1], (2, 427, 640)."""
    from sklearn.datasets import load_sample_images

    colours = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    return colours.float().mean(-1) / 255


def patches(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches at random places, halved in resolution and as they are, (B, 1, 16, 16) and (B, 1, 32, 32)."""
    images = photographs()
    places = [torch.randint(0, n, (size,), generator=generator) for n in (2, 427 - SIDE, 640 - SIDE)]
    sharp = torch.stack([images[i, y : y + SIDE, x : x + SIDE] for i, y, x in zip(*(p.tolist() for p in places))])
    return F.avg_pool2d(sharp.unsqueeze(1), 2), sharp.unsqueeze(1)


def network() -> nn.Module:
    """Three convolutions; the last gives the four pixels of each place."""
    return nn.Sequential(
        nn.Conv2d(1, 48, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(48, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 4, 3, padding=1),
        nn.PixelShuffle(2),
    )


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor], reduction: str = "mean") -> Tensor:
    """Over all pixels of all patches."""
    return F.mse_loss(model(batch[0]), batch[1], reduction=reduction)


def squares_mean() -> Problem:
    """The squared error's mean over pixels and patches."""
    return Problem(
        "squares_mean",
        seeded(network),
        lambda generator: patches(32, generator),
        squared_error,
        [patches(512, generator())],
        600,
        "squared error of a pixel",
    )


def squares_sum() -> Problem:
    """The same, its sum."""
    return summed(squares_mean())
