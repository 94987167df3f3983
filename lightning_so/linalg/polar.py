"""The orthogonal polar factor of a matrix by Newton-Schulz iterations, batched.

Legend: B matrices, M rows, N columns.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Quintic coefficients of Jordan et al. (2024, "Muon"): steep at 0: 5 steps lift small singular values to about 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
#: Largest eigenvalue below zero of a Gram matrix that does not matter: a + b x is by 7 % another at x = -.05.
SMALL = 0.05


def polar(X_BMN: Tensor, *, steps: int = 5, precision: torch.dtype | None = None) -> Tensor:
    """Approximate U V' of X = U S V', for every matrix of a batch.

    Iterates X <- a X + (b A + c A^2) X, A = X X', from X / |X|_F; the singular values end within about [.7, 1.2].

    Args:
        X_BMN: The matrices, shape (B, M, N), any floating dtype.
        steps: Newton-Schulz steps.
        precision: dtype of the products (the input's own by default); bfloat16 where the hardware is fast at it.

    Returns:
        The factors, shape (B, M, N), dtype of X. A zero matrix gives zero.
    """
    a, b, c = COEFFICIENTS
    tall = X_BMN.shape[1] > X_BMN.shape[2]
    X = X_BMN.mT if tall else X_BMN
    # Scale by the largest entry first: the norm of a gradient of 1e-30 underflows when squared in float32.
    peak = X.abs().amax(dim=(1, 2), keepdim=True)
    X = X / peak.clamp_min(torch.finfo(X.dtype).tiny)
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    X = X.to(precision or X_BMN.dtype)
    if _gram_pays(X.shape[1], X.shape[2], steps, X.dtype):
        for some in _stretches(steps, X.dtype):
            X = torch.bmm(_gram(torch.bmm(X, X.mT), some), X)
    else:
        for _ in range(steps):
            A = torch.bmm(X, X.mT)
            X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return (X.mT if tall else X).to(X_BMN.dtype)


@dataclass(frozen=True)
class PolarFactor:
    """`polar` with its arguments: what is equal can be computed in one call.

    Attributes:
        steps: Newton-Schulz steps.
        precision: dtype of the products, None for that of the matrices.

    Example:
        >>> PolarFactor()(torch.eye(2)[None]).shape
        torch.Size([1, 2, 2])
    """

    steps: int = 5
    precision: torch.dtype | None = None

    def __call__(self, X_BMN: Tensor) -> Tensor:
        """See `polar`."""
        return polar(X_BMN, steps=self.steps, precision=self.precision)

    def cost(self, shape: tuple[int, int], dtype: torch.dtype) -> float:
        """See `polar_cost`, of a matrix of a dtype."""
        return polar_cost(shape, self.steps, self.precision or dtype)


def _stretches(steps: int, precision: torch.dtype) -> list[int]:
    """How many steps are taken on one Gram matrix before it is formed anew.

    A holds the squares of small singular values, and rounding of the large ones covers them: A gets eigenvalues of some
    -eps there, which a step multiplies by a^2 and the polynomial blows up once they are large. Formed anew while they
    are below `SMALL`: 2 steps in bf16 and fp16, 6 in fp32, 14 in fp64.
    Source: the restart of Dao-AILab's gram-newton-schulz (2025).

    Args:
        steps: Newton-Schulz steps.
        precision: dtype of the products.

    Returns:
        Steps of each stretch.
    """
    rounding = torch.finfo(precision).eps / 2
    most = 1 + int(math.log(SMALL / rounding) / (2 * math.log(COEFFICIENTS[0])))
    return [min(most, steps - begun) for begun in range(0, steps, most)]


def _gram(A_BMM: Tensor, steps: int) -> Tensor:
    """The product of the polynomials of some steps, which commute with A = X X'.

    With P = a I + b A + c A^2: R <- P R and A <- P A P.

    Args:
        A_BMM: X X', with |X|_F = 1 or singular values of at most about 1.2.
        steps: Iterations.

    Returns:
        R with R X what the plain iteration makes of X.
    """
    a, b, c = COEFFICIENTS
    A, R = A_BMM, A_BMM
    for step in range(steps):
        P = torch.baddbmm(A, A, A, beta=b, alpha=c)
        P.diagonal(dim1=1, dim2=2).add_(a)
        R = P if step == 0 else torch.bmm(P, R)
        if step < steps - 1:
            A = torch.bmm(torch.bmm(P, A), P)
    return R


def _gram_pays(short: int, long: int, steps: int, precision: torch.dtype) -> bool:
    """Whether the iteration on the Gram matrix needs fewer multiply-adds than the one on the matrix."""
    return _gram_cost(short, long, steps, precision) < _plain_cost(short, long, steps)


def _plain_cost(short: int, long: int, steps: int) -> float:
    return float(steps * (2 * short * short * long + short**3))


def _gram_cost(short: int, long: int, steps: int, precision: torch.dtype) -> float:
    stretches = _stretches(steps, precision)
    return float(sum(2 * short * short * long + (4 * some - 3) * short**3 for some in stretches))


def polar_cost(shape: tuple[int, int], steps: int, precision: torch.dtype = torch.float32) -> float:
    """Multiply-adds of `polar` on one matrix, in a precision of the products."""
    short, long = sorted(shape)
    return min(_plain_cost(short, long, steps), _gram_cost(short, long, steps, precision))
