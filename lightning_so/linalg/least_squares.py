"""Damped linear least squares with a dense matrix, for as many dampings as are tried.

Legend: M rows, n columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.linalg.result import Result


class DampedLeastSquares:
    """`min |J d + r|^2 + damping |d|^2`, by the smaller of both normal equations, in float64.

        d = -J' (J J' + damping)^-1 r     where M <= n
        d = -(J'J + damping)^-1 J' r      else

    Source: Levenberg 1944; Nocedal and Wright 2006, section 10.3.
    """

    def __init__(self, jacobian: Tensor, residuals: Tensor) -> None:
        """Form the matrix of the normal equations, once for all dampings.

        Args:
            jacobian: J, shape (M, n).
            residuals: r, shape (M,).
        """
        self._J, self._r = jacobian.double(), residuals.double()
        self._wide = len(self._J) <= self._J.shape[1]
        self._normal = self._J @ self._J.mT if self._wide else self._J.mT @ self._J

    @property
    def scale(self) -> float:
        """The mean eigenvalue of the matrix that is damped: what a damping is large or small beside."""
        return float(self._normal.diagonal().mean())

    def solve(self, damping: float) -> Result:
        """Solve with one damping.

        Args:
            damping: Not negative.

        Returns:
            d, shape (n,), float64; not ok where the matrix is singular or not finite.
        """
        damped = self._normal.clone()
        damped.diagonal().add_(damping)
        L, info = torch.linalg.cholesky_ex(damped)
        right = self._r if self._wide else self._J.mT @ self._r
        x = torch.cholesky_solve(right[:, None], L)[:, 0]
        d = -(self._J.mT @ x) if self._wide else -x
        return Result(d, ok=not int(info) and bool(d.isfinite().all()))

    def change(self, d: Tensor, damping: float) -> float:
        """What the damped model foretells of half the squares: `(|J d + r|^2 - |r|^2 + damping |d|^2) / 2`.

        Args:
            d: A displacement, shape (n,).
            damping: See `solve`.

        Returns:
            The change, not positive at a solution.
        """
        Jd = self._J @ d
        return float(Jd @ (Jd / 2 + self._r) + damping * (d @ d) / 2)


@dataclass(frozen=True, eq=False)
class Residuals:
    """A loss as `|r|^2 / 2`.

    Attributes:
        values: r, shape (M,).
        jacobian: J = dr/dw, shape (M, n).
        by_row: How many residuals were differentiated by row, not one after the other.
    """

    values: Tensor
    jacobian: Tensor
    by_row: int
