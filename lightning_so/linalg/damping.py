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


@dataclass(frozen=True)
class OfRate:
    """Damping in the unit of SGD's own step: l = `times` / rate, the rate of the loss of one term.

    `P g / rate`, P = (F + l)^-1, is then Newton's step where F is large, and in no direction longer than SGD's own
    divided by `times`; while little of F was seen it is between SGD's and that. Neither depends on what the loss is
    multiplied by, nor on whether it is a sum or a mean.

    Attributes:
        times: The multiple.

    Example:
        >>> OfRate(0.1).times
        0.1
    """

    times: float = 0.01


Rule = Relative | OfRate | float


def strength(rule: Relative | Tensor | float, means: list[Tensor]) -> Tensor:
    """The damping l of blocks, (k,); `means` are those of their two sides, (k,), and a rule may give one of each."""
    if isinstance(rule, Relative):
        return rule.times * (means[0] * means[1])
    return rule.to(means[0]) if isinstance(rule, Tensor) else torch.full_like(means[0], rule)


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


def added(rule: Relative | Tensor | float, values: list[Tensor]) -> Tensor:
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
