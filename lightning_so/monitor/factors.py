"""How well the factors of a layer's curvature are conditioned."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.linalg.precision import FullPrecision


@dataclass(frozen=True)
class FactorHealth:
    """The factors of one block.

    Attributes:
        rank: The least effective rank, `tr(F)^2 / |F|_F^2`, over the size of the factor: 1 where all directions count
            as much.
        condition: The largest condition number; where a factor is singular in the precision of its numbers, one over
            that.
    """

    rank: float
    condition: float


@FullPrecision()
def factor_health(factors: Sequence[Tensor]) -> FactorHealth | None:
    """Look at the factors of one block: an eigendecomposition each.

    Args:
        factors: Symmetric and positive semi-definite, shapes (..., T, T); those of one number tell nothing.

    Returns:
        What is seen; None where there is none that anything was folded into.
    """
    ranks, conditions = [], []
    for factor in factors:
        size = factor.shape[-1]
        if factor.ndim < 2 or factor.shape[-2] != size or size < 2 or not bool(factor.isfinite().all()):
            continue
        # In float64 rounding does not hide the small end from the ratio.
        for values in torch.linalg.eigvalsh(factor.double()).reshape(-1, size):
            if float(values[-1]) <= 0:
                continue
            ranks.append(float(values.sum() ** 2 / values.square().sum()) / size)
            conditions.append(1 / max(float(values[0] / values[-1]), torch.finfo(factor.dtype).eps))
    return FactorHealth(min(ranks), max(conditions)) if ranks else None
