"""A positive matrix from its products with a few random vectors: eigenvectors, eigenvalues, and its damped inverse.

Legend: r vectors, n numbers of this rank, N of all ranks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.linalg.vectors import Space

#: What of `Omega A Omega'` is not symmetric is noise of the products; eigenvalues below zero by so many times that, or
#: by this share of the largest, are not.
NOISE, ROUNDING = 4.0, 1e-9


@dataclass(frozen=True)
class Nystrom:
    """`A ~ U' diag(values) U`, with orthonormal rows U; rows of zeros where the eigenvalue is zero.

    Attributes:
        rows: U, shape (r, n).
        values: Falling, not negative, shape (r,), float64, on the CPU.
        reason: Why it is nothing to go by ("indefinite", "dependent", "not finite"), or "".
        lowest: The smallest eigenvalue of `Omega A Omega'` over the largest, for orthonormal Omega.
        noise: What of that matrix is not symmetric, the same way: how exact the products are.
    """

    rows: Tensor
    values: Tensor
    reason: str = ""
    lowest: float = 0.0
    noise: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it is an approximation."""
        return not self.reason

    @property
    def least(self) -> float:
        """The smallest eigenvalue that was found, l_r; zero where there is none."""
        found = self.values[self.values > 0]
        return float(found[-1]) if len(found) else 0.0

    def inverse(self, v: Tensor, rho: float, space: Space) -> Tensor:
        """`(U'LU + rho)^-1 v`, by Woodbury's identity.

        Args:
            v: A vector, shape (n,).
            rho: Damping, positive.
            space: What inner products are.

        Returns:
            The vector, shape (n,).
        """
        return self._divided(v, rho, rho, space) / rho

    def precondition(self, v: Tensor, rho: float, space: Space) -> Tensor:
        """`P^-1 v`, `P^-1 = (l_r + rho) U'(L + rho)^-1 U + (1 - U'U)`: what was not sketched stays as it is.

        Source: Frangella, Tropp and Udell 2021, arXiv 2110.02820, equation 1.3 and section 5.

        Args:
            v: A vector, shape (n,).
            rho: Damping, not negative.
            space: What inner products are.

        Returns:
            The vector, shape (n,).
        """
        return self._divided(v, rho, self.least + rho, space)

    def _divided(self, v: Tensor, rho: float, scale: float, space: Space) -> Tensor:
        """`scale U'(L + rho)^-1 U v + (v - U'U v)`."""
        along = space.along(self.rows, v[None])[:, 0].cpu()
        factors = torch.where(self.values > 0, scale / (self.values + rho), 1.0)
        return torch.addmv(v, self.rows.mT, (along * (factors - 1.0)).to(v))


def nystrom(Y: Tensor, Omega: Tensor, space: Space) -> Nystrom:
    """Nyström's approximation `A Omega' (Omega A Omega')^+ Omega A`, the largest part of a positive matrix.

        Omega orthonormal,   C = Omega Y' + nu,   B = C^(-1/2) (Y + nu Omega) = S U,   L = S^2 - nu

    Exact for positive matrices of rank r. The shift nu keeps what is nearly singular apart from rounding, and is taken
    away again. Products by differences are not those of a symmetric matrix to the last digit: what is not symmetric in
    `Omega Y'` says how far eigenvalues can be below zero by that alone, and is what the shift begins at.

    Source: Frangella, Tropp and Udell 2021, arXiv 2110.02820, algorithm 2.1; Tropp et al. 2017, arXiv 1706.05736.

    Args:
        Y: Products `A omega`, shape (r, n).
        Omega: The vectors, linearly independent, shape (r, n).
        space: What inner products are.

    Returns:
        The approximation; not ok where the matrix has eigenvalues that are negative, or products are not finite.
    """
    grams = space.gram(torch.cat([Omega, Y]), torch.cat([Omega, Y])).cpu()
    r = len(Y)
    nothing = torch.zeros_like(Y), torch.zeros(r, dtype=torch.float64)
    if not bool(grams.isfinite().all()):
        return Nystrom(*nothing, "not finite")
    L, info = torch.linalg.cholesky_ex(grams[:r, :r])
    if int(info):
        return Nystrom(*nothing, "dependent")
    # Orthonormal vectors in the span of Omega are R Omega, and their products R Y.
    R = torch.linalg.inv(L)
    C, squares = R @ grams[:r, r:] @ R.mT, R @ grams[r:, r:] @ R.mT
    D, W = torch.linalg.eigh((C + C.mT) / 2)
    size = max(float(D.abs().max()), 1e-300)
    noise = float(torch.linalg.matrix_norm(C - C.mT, 2)) / 2
    tolerance = NOISE * noise + ROUNDING * size
    found = {"lowest": float(D[0]) / size, "noise": noise / size}
    if float(D[0]) < -tolerance:
        return Nystrom(*nothing, "indefinite", **found)
    shift = space.dimension**0.5 * torch.finfo(Y.dtype).eps * float(squares.diagonal().sum().sqrt())
    nu = max(shift, -2.0 * float(D[0]))
    root = ((W / (D + nu).sqrt()).mT @ R).to(Y)
    B = torch.addmm(root @ Y, root, Omega, alpha=nu)
    squared, E = torch.linalg.eigh(space.gram(B, B).cpu())
    squared, E = squared.flip(0), E.flip(1)
    kept = squared > nu + tolerance
    left = torch.where(kept, squared, 1.0).rsqrt()[:, None] * E.mT * kept[:, None]
    return Nystrom(left.to(Y) @ B, torch.where(kept, squared - nu, 0.0), "", **found)
