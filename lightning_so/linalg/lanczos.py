"""Lanczos: the extreme eigenvalues of a symmetric operator, and its spectral density, from products alone.

Legend: n numbers of this rank, m steps, p probes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.linalg.vectors import Space

Product = Callable[[Tensor], Tensor]
#: A step that leaves less than this share of the largest entry has found an invariant subspace; or less than so many
#: times the rounding of the vectors: what is left is then rounding itself, and not orthogonal to those before.
NOTHING, ROUNDING = 1e-10, 16.0


@dataclass(frozen=True)
class Tridiagonal:
    """What m steps of Lanczos found: `V A V' = T`, with orthonormal rows V that begin with the start.

    Attributes:
        diagonal: Of T, shape (m,), float64.
        beside: Of T beside its diagonal, shape (m - 1,), float64.
        rest: The length that the next step would have had; 0 where an invariant subspace was found.
        basis: V, shape (m, n), in the dtype of the vectors.
        ok: Whether all products were finite; else the steps are those before the first that was not.
    """

    diagonal: Tensor
    beside: Tensor
    rest: float
    basis: Tensor
    ok: bool = True

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues of T, rising; the weights of the start on them; bounds of each one's distance to one of A.

        Returns:
            Values, weights that sum to one, and `rest |last component|` (Paige 1971), shapes (m,), float64.
        """
        values, S = self._eigh()
        return values, S[0].square(), self.rest * S[-1].abs()

    def vector(self, number: int) -> Tensor:
        """The Ritz vector of an eigenvalue, shape (n,); -1 is the top, 0 the bottom."""
        _, S = self._eigh()
        return (S[:, number].to(self.basis) @ self.basis).to(self.basis)

    def _eigh(self) -> tuple[Tensor, Tensor]:
        T = torch.diag(self.diagonal) + torch.diag(self.beside, 1) + torch.diag(self.beside, -1)
        values, S = torch.linalg.eigh(T)
        return values, S


def lanczos(product: Product, start: Tensor, steps: int, space: Space) -> Tridiagonal:
    """Take steps of Lanczos, each orthogonalised against all before, twice.

        b_j v_{j+1} = A v_j - a_j v_j - b_{j-1} v_{j-1}

    `<start, A^k start>` is exact for k <= 2 m - 1.

    Source: Lanczos 1950; orthogonalised twice as in Giraud and Langou 2002.

    Args:
        product: `v -> A v`, A symmetric; one call a step.
        start: A vector that is not zero, shape (n,).
        steps: m; fewer are taken where an invariant subspace is found.
        space: What inner products are.

    Returns:
        The tridiagonal matrix.
    """
    nothing = max(NOTHING, ROUNDING * torch.finfo(start.dtype).eps)
    basis = (start / space.norm(start))[None]
    diagonal, beside, rest = [], [], 0.0
    while len(diagonal) < steps:
        w = product(basis[-1])
        coefficients = space.gram(basis, w[None])[:, 0]
        if not bool(coefficients.isfinite().all()):
            return Tridiagonal(_column(diagonal), _column(beside[:-1]), rest, basis[: len(diagonal)], ok=False)
        diagonal.append(float(coefficients[-1]))
        w = w - coefficients.to(w) @ basis
        w = w - space.gram(basis, w[None])[:, 0].to(w) @ basis
        rest = space.norm(w)
        if rest <= nothing * max(map(abs, (*diagonal, *beside))):
            rest = 0.0
            break
        beside.append(rest)
        basis = torch.cat([basis, (w / rest)[None]])
    return Tridiagonal(_column(diagonal), _column(beside[: len(diagonal) - 1]), rest, basis[: len(diagonal)])


def _column(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@dataclass(frozen=True)
class Density:
    """A spectral density by stochastic Lanczos quadrature: points with weights, one row a probe.

    Attributes:
        values: The points, shape (p, m), float64; zeros without weight where an invariant subspace was found before.
        weights: Their weights, rows sum to one, shape (p, m), float64.
        dimension: N.
    """

    values: Tensor
    weights: Tensor
    dimension: int

    def mean(self, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """`tr f(A) / N` and its standard error over probes (infinite for one)."""
        found = (self.weights * function(self.values)).sum(1)
        spread = found.std().item() / len(found) ** 0.5 if len(found) > 1 else float("inf")
        return found.mean().item(), spread

    def ends(self) -> tuple[float, float]:
        """The smallest and the largest point."""
        points = self.values[self.weights > 0]
        return float(points.min()), float(points.max())

    def negative(self) -> float:
        """The share of eigenvalues below zero."""
        return self.mean(lambda values: (values < 0).double())[0]

    def at(self, grid: Tensor, width: float) -> Tensor:
        """The density, smoothed by a Gaussian.

        Args:
            grid: Where, shape (g,).
            width: Standard deviation of the Gaussian.

        Returns:
            The density, shape (g,); its integral is one.
        """
        distance = (grid.double()[:, None, None] - self.values) / width
        bumps = torch.exp(-0.5 * distance.square()) / (width * (2 * torch.pi) ** 0.5)
        return (bumps * self.weights).sum(-1).mean(-1)


def density(product: Product, space: Space, *, steps: int, probes: int, seed: int = 0) -> Density:
    """Stochastic Lanczos quadrature: m products a probe.

    Source: Ubaru, Chen and Saad 2017; Ghorbani, Krishnan and Xiao 2019, arXiv 1901.10159.

    Args:
        product: `v -> A v`, A symmetric.
        space: What vectors are.
        steps: m.
        probes: p, of random signs; more bring the standard error down.
        seed: Of the probes.

    Returns:
        The density; probes whose products were not finite are left out.
    """
    values, weights = [], []
    for number in range(probes):
        found = lanczos(product, space.rademacher(seed, number), steps, space)
        if found.ok:
            points, shares, _ = found.ritz()
            empty = (0, steps - len(points))
            values.append(torch.nn.functional.pad(points, empty))
            weights.append(torch.nn.functional.pad(shares, empty))
    none = torch.empty(0, steps, dtype=torch.float64)
    return Density(torch.stack(values) if values else none, torch.stack(weights) if weights else none, space.dimension)
