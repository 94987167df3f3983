"""Damping of a Kronecker product: how much, and how it is split between its two sides.

Source: Martens and Grosse 2015, arXiv 1503.05671, section 6.3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Relative:
    """Damping without a unit: l = `times` mean(A) mean(G), the block's own scale, with mean(F) = tr F / dim F.

    Attributes:
        times: The multiple.

    Example:
        >>> Relative(0.5).times
        0.5
    """

    times: float = 0.1


def strength(rule: Relative | float, means: list[Tensor]) -> Tensor:
    """The damping l of a block, a scalar tensor; `means` are those of its two sides."""
    return rule.times * (means[0] * means[1]) if isinstance(rule, Relative) else torch.full_like(means[0], rule)


def split(damping: Tensor, means: list[Tensor]) -> list[Tensor]:
    """`pi sqrt(l)` of the first side and `sqrt(l) / pi` of the second, pi^2 = mean(A) / mean(G).

    Invariant to A -> c A, G -> G / c; not finite where a side is zero.

    Args:
        damping: The damping l.
        means: Of both sides.

    Returns:
        What to add to the diagonal of each side.
    """
    first = (damping * means[0] / means[1]).sqrt()
    return [first, damping / first]


def added(rule: Relative | float, values: list[Tensor]) -> Tensor:
    """What damping both sides adds to the eigenvalues `l r'` of their product: `(l + d_l) (r + d_r)' - l r'`.

    Args:
        rule: The damping.
        values: Eigenvalues l and r of the sides, (B, Q, M) and (B, Q, N).

    Returns:
        The sum of its positive terms, (B, Q, M, N).
    """
    means = [value.mean((1, 2)) for value in values]
    of_l, of_r = (half[:, None, None, None] for half in split(strength(rule, means), means))
    return of_r * values[0][..., None] + of_l * values[1][:, :, None] + of_l * of_r
