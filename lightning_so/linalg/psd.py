"""Inverses of damped factors, batched, with the failure ladder.

Legend: Q matrices of one shape, T side.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_so.linalg.result import Result
from lightning_so.linalg.unseen import eigh, unseen

#: Damping is raised by these factors where a Cholesky decomposition fails; then the same in float64.
RUNGS = (1.0, 10.0, 100.0)


def ladder(F_QTT: Tensor, damping_Q: Tensor) -> Iterator[Tensor]:
    """`F + d I` rung by rung: more damping, then the same in float64.

    Args:
        F_QTT: Factors, shape (Q, T, T).
        damping_Q: d of each, shape (Q,).

    Yields:
        The damped factors of the next rung, a copy.
    """
    for dtype in dict.fromkeys((F_QTT.dtype, torch.float64)):
        for raised in RUNGS:
            F = F_QTT.to(dtype, copy=True)
            F.diagonal(dim1=1, dim2=2).add_((raised * damping_Q).to(dtype)[:, None])
            yield F


def inverse(F_QTT: Tensor, damping_Q: Tensor) -> Result:
    """`(F + d I)^-1` by Cholesky, one rung of the ladder after the other until it is finite.

    Args:
        F_QTT: Factors, symmetric positive semi-definite, shape (Q, T, T).
        damping_Q: d > 0 of each, shape (Q,).

    Returns:
        The inverses; `ok=False` if the factors are not finite, are zero, or every rung failed.
    """
    attempts = 0
    for attempts, F in enumerate(ladder(F_QTT, damping_Q), start=1):
        if F.shape[-1] <= 2:
            value, whole = _small(F)
            if whole and bool((damping_Q > 0).all()):
                return Result(value.to(F_QTT.dtype), ok=True, attempts=attempts)
            continue
        L, info = torch.linalg.cholesky_ex(F)
        # An unfinished decomposition must not go on: inverting it raises.
        if not bool((info == 0).all() & L.isfinite().all() & (damping_Q > 0).all()):
            continue
        value = torch.cholesky_inverse(L).to(F_QTT.dtype)
        if bool(value.isfinite().all()):
            return Result(value, ok=True, attempts=attempts)
    return Result(F_QTT, ok=False, attempts=attempts)


def _small(F_QTT: Tensor) -> tuple[Tensor, bool]:
    """Inverses of many matrices of one or two rows in closed form, and whether all are positive definite."""
    if F_QTT.shape[-1] == 1:
        return F_QTT.reciprocal(), bool((F_QTT > 0).all() & F_QTT.isfinite().all())
    (a, b), (_, c) = (row.unbind(-1) for row in F_QTT.unbind(-2))
    determinant = a * c - b * b
    value = torch.stack([torch.stack([c, -b], -1), torch.stack([-b, a], -1)], -2) / determinant[..., None, None]
    return value, bool((a > 0).all() & (determinant > 0).all() & value.isfinite().all())


def eigenbasis(F_QTT: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Eigenvalues (Q, T), not below zero, and eigenvectors (Q, T, T), in float64 and back; whether they are finite."""
    try:
        values, vectors = eigh(F_QTT.double(), unseen(F_QTT))
    except torch.linalg.LinAlgError:
        return F_QTT.diagonal(dim1=1, dim2=2), F_QTT, False
    ok = bool(values.isfinite().all() & vectors.isfinite().all())
    return values.clamp_min(0).to(F_QTT.dtype), vectors.to(F_QTT.dtype), ok


def inverse_cost(side: int) -> float:
    """Modelled cost of `inverse` of one matrix, in multiply-adds of a matrix product."""
    return 1.5 * side**3 + 200.0 * side**2
