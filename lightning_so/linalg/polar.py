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
    for _ in range(steps):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return (X.mT if tall else X).to(X_BMN.dtype)


def polar_cost(shape: tuple[int, int], steps: int) -> float:
    """Multiply-adds of `polar` on one matrix."""
    short, long = sorted(shape)
    return steps * (2 * short * short * long + short**3)
