"""Inverses of damped factors, batched, with the failure ladder.

Legend: Q matrices of one shape, T side.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_so.linalg.result import Result
from lightning_so.linalg.unseen import eigh, maybe, unseen

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
    attempts, sound = 0, F_QTT.isfinite().all() & (damping_Q > 0).all()
    for attempts, F in enumerate(ladder(F_QTT, damping_Q), start=1):
        value = inverted(F).to(F_QTT.dtype)
        if bool(sound & value.isfinite().all() & (value.diagonal(dim1=1, dim2=2) > 0).all()):
            return Result(value, ok=True, attempts=attempts)
    return Result(F_QTT, ok=False, attempts=attempts)


def inverted(F_QTT: Tensor) -> Tensor:
    """Inverses of damped factors by Cholesky, one rung of the ladder, of each for itself.

    Args:
        F_QTT: The factors, symmetric, with diagonals that are finite, shape (Q, T, T).

    Returns:
        The inverses. Of one that is not positive definite the trace is not a number, or not finite; a positive and
        finite one says that all of an inverse is: no entry is larger than those on the diagonal.
    """
    if F_QTT.shape[-1] <= 2:
        return _small(F_QTT)
    L, info = torch.linalg.cholesky_ex(F_QTT)
    if maybe(info):
        # An unfinished decomposition must not go on: inverting it raises.
        L = torch.where((info == 0)[:, None, None], L, torch.nan)
    return torch.cholesky_inverse(L)


def or_identity(F_QTT: Tensor, sound_Q: Tensor) -> Tensor:
    """The matrices that are sound, and the identity in the place of the others: one must not end the others."""
    return torch.where(
        sound_Q[:, None, None], F_QTT, torch.eye(F_QTT.shape[-1], dtype=F_QTT.dtype, device=F_QTT.device)
    )


def _small(F_QTT: Tensor) -> Tensor:
    """Inverses of many matrices of one or two rows in closed form; see `inverted`."""
    if F_QTT.shape[-1] == 1:
        return torch.where(F_QTT > 0, F_QTT, torch.nan).reciprocal()
    lowest = torch.addcmul(F_QTT.diagonal(dim1=1, dim2=2).prod(1), F_QTT[:, 0, 1], F_QTT[:, 1, 0], value=-1)
    determinant = torch.where((lowest > 0) & (F_QTT[:, 0, 0] > 0), lowest, torch.nan)
    value = F_QTT.flip((1, 2)).div_(determinant[:, None, None])
    value.flatten(1)[:, 1:3].neg_()
    return value


def eigenbasis(F_QTT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues and eigenvectors of factors, in float64 and back, of each for itself.

    Args:
        F_QTT: The factors, symmetric positive semi-definite, shape (Q, T, T).

    Returns:
        The values (Q, T), not below zero, the vectors (Q, T, T), and which are finite, shape (Q,).
    """
    F = F_QTT.double()
    finite = F.abs().amax((1, 2)) < torch.inf
    F = or_identity(F, finite)
    try:
        values, vectors = eigh(F, unseen(F_QTT))
    except torch.linalg.LinAlgError:
        return F_QTT.diagonal(dim1=1, dim2=2), F_QTT, torch.zeros_like(finite)
    finite = finite & (values.abs().amax(1) < torch.inf) & (vectors.abs().amax((1, 2)) < torch.inf)
    return values.clamp_min(0).to(F_QTT.dtype), vectors.to(F_QTT.dtype), finite


def inverse_cost(side: int) -> float:
    """Modelled cost of `inverse` of one matrix, in multiply-adds of a matrix product."""
    return 1.5 * side**3 + 200.0 * side**2
