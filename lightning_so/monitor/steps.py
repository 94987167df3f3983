"""What one step of an optimizer did to each layer: how far it went, and whether downhill.

Legend: n numbers of this rank.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.linalg.vectors import Space


@dataclass(frozen=True)
class LayerStep:
    """The step of one layer; nan where it has not moved, or has no gradient.

    Attributes:
        trust: `|dW| / |W|`, the trust ratio.
        cosine: `-<dW, g> / (|dW| |g|)`, of the step and of descent.
    """

    trust: float
    cosine: float


def layer_steps(
    space: Space, before: Tensor, after: Tensor, gradient: Tensor, layers: Mapping[str, Sequence[int]]
) -> dict[str, LayerStep]:
    """The steps of layers, and under "" that of all of them: one sum over ranks, and one host read.

    Args:
        space: What vectors are.
        before: The weights before the step, shape (n,).
        after: Those after it.
        gradient: The gradient that the step was for.
        layers: Numbers of the pieces of each layer.

    Returns:
        By layer.
    """
    X = torch.stack([before, after - before, gradient])
    parts = X.split([piece.count for piece in space.pieces], 1)
    grams = [part @ part.mT if piece.counted else X.new_zeros(3, 3) for piece, part in zip(space.pieces, parts)]
    found = space.total(torch.stack(grams).double()).cpu()
    groups = {"": range(len(space.pieces)), **layers}
    return {name: _step(found[list(numbers)].sum(0).tolist()) for name, numbers in groups.items()}


def _step(gram: list[list[float]]) -> LayerStep:
    weight, step, gradient = (math.sqrt(gram[place][place]) for place in range(3))
    trust = step / weight if weight else math.nan
    return LayerStep(trust, -gram[1][2] / (step * gradient) if step * gradient else math.nan)
