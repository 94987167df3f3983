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
    counted = torch.tensor([float(piece.counted) for piece in space.pieces], dtype=torch.float64, device=space.device)
    W, D, G = (space.split(vector) for vector in (before, after - before, gradient))
    # Without copies of what may be as large as the model.
    squares = [torch.stack(torch._foreach_norm(parts)).double().square() for parts in (W, D, G)]
    along = torch.stack([torch.dot(step, grad) for step, grad in zip(D, G, strict=True)]).double()
    found = space.total(torch.stack([*squares, along]) * counted).cpu()
    groups = {"": range(len(space.pieces)), **layers}
    return {name: _step(*found[:, list(numbers)].sum(1).tolist()) for name, numbers in groups.items()}


def _step(weight: float, step: float, gradient: float, along: float) -> LayerStep:
    """One of the squared norms and the product."""
    trust = math.sqrt(step / weight) if weight else math.nan
    return LayerStep(trust, -along / math.sqrt(step * gradient) if step * gradient else math.nan)
