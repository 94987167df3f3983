"""The orthogonal polar factor of a matrix by Newton-Schulz iterations, batched.

Legend: B matrices, M rows, N columns.
"""

import torch
from torch import Tensor

#: Quintic coefficients of Jordan et al. (2024, "Muon"): steep at 0: 5 steps lift small singular values to about 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


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
    if _gram_pays(X.shape[1], X.shape[2], steps):
        X = _gram(X @ X.mT, steps) @ X
    else:
        for _ in range(steps):
            A = X @ X.mT
            X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return (X.mT if tall else X).to(X_BMN.dtype)


def _gram(A_BMM: Tensor, steps: int) -> Tensor:
    """The product of all polynomials of the iteration, which commute with A = X X'.

    The long side is then touched twice only. With P = a I + b A + c A^2: R <- P R and A <- P A P. Small singular
    values are squared in A, but an error there changes P by no more than its own size.

    Args:
        A_BMM: X X', with |X|_F = 1.
        steps: Iterations.

    Returns:
        R with polar(X) = R X.
    """
    a, b, c = COEFFICIENTS
    A, R = A_BMM, A_BMM
    for step in range(steps):
        P = torch.baddbmm(A, A, A, beta=b, alpha=c)
        P.diagonal(dim1=1, dim2=2).add_(a)
        R = P if step == 0 else P @ R
        if step < steps - 1:
            A = (P @ A) @ P
    return R


def _gram_pays(short: int, long: int, steps: int) -> bool:
    """Whether the iteration on the Gram matrix needs fewer multiply-adds than the one on the matrix."""
    return _gram_cost(short, long, steps) < _plain_cost(short, long, steps)


def _plain_cost(short: int, long: int, steps: int) -> float:
    return float(steps * (2 * short * short * long + short**3))


def _gram_cost(short: int, long: int, steps: int) -> float:
    return float(2 * short * short * long + (4 * steps - 3) * short**3)


def polar_cost(shape: tuple[int, int], steps: int) -> float:
    """Multiply-adds of `polar` on one matrix."""
    short, long = sorted(shape)
    return min(_plain_cost(short, long, steps), _gram_cost(short, long, steps))
