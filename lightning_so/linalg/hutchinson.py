"""Hutchinson's estimators: the trace and the diagonal of a symmetric operator from products with random signs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.linalg.lanczos import Product
from lightning_so.linalg.vectors import Space


@dataclass(frozen=True)
class Trace:
    """An estimate.

    Attributes:
        mean: Of the trace.
        error: Its standard error; infinite for one probe.
        samples: z' A z of every probe whose product was finite, shape (p,), float64.
    """

    mean: float
    error: float
    samples: Tensor


def trace(product: Product, space: Space, *, probes: int, seed: int = 0) -> Trace:
    """`tr A = E[z' A z]`, z of random signs; the variance is `2 (|A|_F^2 - sum A_ii^2)`.

    Source: Hutchinson 1989; the variance: Avron and Toledo 2011.

    Args:
        product: `v -> A v`, A symmetric.
        space: What vectors are.
        probes: p, one product each.
        seed: Of the probes.

    Returns:
        The estimate; NaN where no product was finite.
    """
    found = []
    for number in range(probes):
        z = space.rademacher(seed, number)
        found.append(space.dot(z, product(z)))
    samples = torch.tensor(found, dtype=torch.float64)
    samples = samples[samples.isfinite()]
    error = samples.std().item() / len(samples) ** 0.5 if len(samples) > 1 else float("inf")
    return Trace(samples.mean().item(), error, samples)


def diagonal(product: Product, space: Space, *, probes: int, seed: int = 0) -> Tensor:
    """`diag A = E[z * A z]`; the variance of number i is `sum_{j != i} A_ij^2`.

    Source: Bekas, Kokiopoulou and Saad 2007.

    Args:
        product: `v -> A v`, A symmetric.
        space: What vectors are.
        probes: How many products are averaged.
        seed: Of the probes.

    Returns:
        The estimate, shape (n,).
    """
    total = torch.zeros(sum(piece.count for piece in space.pieces), dtype=space.dtype, device=space.device)
    for number in range(probes):
        z = space.rademacher(seed, number)
        total += z * product(z)
    return total / probes
