"""Frames: a few orthonormal vectors, and what happens when one of them is replaced or all of them turn.

Legend: k vectors, n numbers of this rank.
"""

import torch
from torch import Tensor

from lightning_so.linalg.result import Result
from lightning_so.linalg.vectors import Space

#: A vector that keeps less than this share of its length beside others is one of theirs, and rounding.
DEPENDENT = 1e-4


def orthonormal(X_kn: Tensor, space: Space) -> Result:
    """Orthonormalise vectors, the first ones first: `X = L Q` with a positive diagonal of L.

    CholeskyQR, twice: one sum over ranks of k x k numbers each time. The diagonal fixes the signs: a QR of LAPACK may
    flip any row from call to call, and a memory of directions is lost with it.

    Source: Yamamoto et al. 2015, "Roundoff error analysis of the CholeskyQR2 algorithm".

    Args:
        X_kn: Vectors, shape (k, n).
        space: What inner products are.

    Returns:
        Q, shape (k, n); not ok where the vectors are dependent or not finite.
    """
    Q = X_kn
    for _ in range(2):
        lengths = space.gram(Q, Q).diagonal().sqrt()
        # Rows of one length: otherwise a short one looks dependent.
        Q = Q / torch.where(lengths > 0, lengths, 1.0).to(Q)[:, None]
        L, info = torch.linalg.cholesky_ex(space.gram(Q, Q))
        if int(info) or not bool(L.isfinite().all()) or float(L.diagonal().min()) < DEPENDENT:
            return Result(X_kn, ok=False)
        Q = torch.linalg.solve_triangular(L, torch.eye(len(L)).to(L), upper=False).to(Q) @ Q
    return Result(Q, ok=True)


def beside(V_kn: Tensor, x_n: Tensor, space: Space) -> Tensor | None:
    """The unit vector that x has beside orthonormal vectors (Gram and Schmidt, twice).

    Args:
        V_kn: Orthonormal vectors; rows of zeros do not count. Shape (k, n).
        x_n: A vector, shape (n,).
        space: What inner products are.

    Returns:
        The vector, shape (n,); None if x is one of theirs, or not finite.
    """
    whole = space.norm(x_n)
    for _ in range(2):
        x_n = torch.addmv(x_n, V_kn.mT, space.along(V_kn, x_n[None])[:, 0].to(x_n), alpha=-1)
    length = space.norm(x_n)
    return x_n / length if DEPENDENT * whole < length < float("inf") else None


def turned(A_kk: Tensor, V_kn: Tensor, W_kn: Tensor, space: Space) -> Tensor:
    """A form of one frame in another, `R A R'` with `R = W V'`: exact where both span the same.

    Args:
        A_kk: The form over V, shape (k, k), float64.
        V_kn: The frame that was.
        W_kn: The frame that is.
        space: What inner products are.

    Returns:
        The form over W, shape (k, k), where the form over V is: on the CPU, whatever the device of the vectors.
    """
    R = space.gram(W_kn, V_kn).to(A_kk.device)
    return R @ A_kk @ R.mT
