"""The eigenbasis of a factor: one warm QR iteration, or a full eigendecomposition when that fails.

All take one factor or a batch of them.
Legend: T side of a tile; F factor, Q basis (columns, sorted by falling eigenvalue).
"""

import torch
from torch import Tensor

from lightning_so.linalg.result import Result
from lightning_so.linalg.unseen import columns_of, eigh, pin, unseen

#: What the calls of a solve cost at any size, in multiply-adds of a matrix product.
CALLS = 1e7


def ridge(F_TT: Tensor, strength: float) -> Tensor:
    """An ordered ridge that breaks ties, `strength * mean(diag F) * linspace(1, .5)`, shape (..., T).

    Inside a null space a basis is whatever rounding says, and one ulp on the weights then changes the run;
    the slope makes the null directions ordered axes.

    Args:
        F_TT: The factor, shape (..., T, T).
        strength: Relative size; 0 adds nothing.

    Returns:
        The diagonal to add, shape (..., T).
    """
    slope = torch.linspace(1.0, 0.5, F_TT.shape[-1], dtype=F_TT.dtype, device=F_TT.device)
    return strength * F_TT.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) * slope


def fix_signs(Q_TT: Tensor, signs_T: Tensor) -> Tensor:
    """Flip the columns of Q whose sign is negative: LAPACK may flip any column from call to call."""
    return Q_TT * torch.where(signs_T < 0, -1.0, 1.0).to(Q_TT.dtype)[..., None, :]


def refresh(F_TT: Tensor, Q_TT: Tensor, *, strength: float, floor: Tensor | None = None) -> Result:
    """One orthogonal iteration of the basis: Q~ = qr((F + ridge) Q P), P sorting by diag(Q' F Q).

    Climbs the ladder: the dtype of F, then eigh in float64, then gives up (`ok=False`: keep the last basis). Axes of
    which F has seen nothing stay columns, exactly.

    Args:
        F_TT: The factor, symmetric positive semi-definite, shape (..., T, T).
        Q_TT: The last basis, orthogonal, shape (..., T, T).
        strength: Relative size of the tie-breaking ridge.
        floor: Added to the diagonal, a scalar tensor.

    Returns:
        The new basis, the permutation `order` (column j of the new basis continues column `order[..., j]` of the last),
        and how many rungs were needed.
    """
    F, diagonal = _raised(F_TT, floor), F_TT.diagonal(dim1=-2, dim2=-1)
    # Without a ridge, columns of a null space would be arbitrary in the decomposition: its axes take their own place.
    ridged = ridge(F, strength) if strength else unseen(F_TT) * diagonal.amax(-1, keepdim=True)
    FQ = (F @ Q_TT).addcmul(ridged[..., None], Q_TT)
    order = (Q_TT * FQ).sum(-2).argsort(dim=-1, descending=True, stable=True)
    Q, R = torch.linalg.qr(FQ.gather(-1, order[..., None, :].expand(FQ.shape)))
    sizes = R.diagonal(dim1=-2, dim2=-1)
    Q = fix_signs(Q, sizes)
    # A factor of zeros leaves R = 0 and Q arbitrary but orthogonal: keep the basis we had. One host read for all.
    checks = [F.isfinite().all(), Q.isfinite().all(), sizes.any(-1).all(), (diagonal > 0).all()]
    sound, finite, nonzero, seen = torch.stack(checks).tolist()
    if not sound:
        return Result(Q_TT, ok=False, attempts=0)
    if not (finite and nonzero):
        return decompose(F_TT, Q_TT, strength, floor)
    if not seen:
        dark = unseen(F_TT)
        if (axes := columns_of(Q_TT, dark)) is None:  # Seen long ago, and forgotten since.
            return decompose(F_TT, Q_TT, strength, floor)
        pin(Q, dark, order.argsort(-1).gather(-1, axes))
    return Result(Q, ok=True, order=order)


def decompose(F_TT: Tensor, Q_TT: Tensor, strength: float, floor: Tensor | None = None) -> Result:
    """A basis from the factor alone, and the second rung of the ladder: eigh of F + ridge in float64.

    Args:
        F_TT: The factor, symmetric positive semi-definite, shape (..., T, T).
        Q_TT: A basis that decides the signs, shape (..., T, T).
        strength: Relative size of the tie-breaking ridge.
        floor: Added to the diagonal, a scalar tensor.

    Returns:
        The basis, columns sorted by falling eigenvalue, axes of which F has seen nothing at the end; `ok=False` for
        factors of zeros or one that fails.
    """
    F = _raised(F_TT, floor).double()
    if not bool(F.abs().amax() > 0):
        return Result(Q_TT, ok=False, attempts=2)
    dark = unseen(F_TT)
    try:
        values, Q = eigh(F + torch.diag_embed(ridge(F, strength)), dark)
    except torch.linalg.LinAlgError:
        return Result(Q_TT, ok=False, attempts=2)
    Q = Q.flip(-1)
    identity = torch.arange(F.shape[-1], device=F.device).expand(F.shape[:-1])
    # Continue the old columns: the sign in which most of each column's old self points; axes keep theirs.
    signs = (Q * Q_TT.double()).sum(-2).where(identity < (~dark).sum(-1, keepdim=True), 1.0)
    Q = fix_signs(Q, signs)
    return Result(Q.to(Q_TT.dtype), ok=bool(values.isfinite().all() and Q.isfinite().all()), order=identity, attempts=2)


def _raised(F_TT: Tensor, floor: Tensor | None) -> Tensor:
    """A factor with a floor under its diagonal."""
    return F_TT if floor is None else F_TT + floor * torch.eye(F_TT.shape[-1], dtype=F_TT.dtype, device=F_TT.device)


def refresh_cost(side: int) -> float:
    """Modelled cost of `refresh` in multiply-adds of a matrix product: a product, a QR (slow when small), calls."""
    return 6.0 * side**3 + 900.0 * side**2 + CALLS
