"""The eigenbasis of a factor: one warm QR iteration, or a full eigendecomposition when that fails.

Legend: B factors of one side; T side of a tile; F factor, Q basis (columns, sorted by falling eigenvalue).
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lightning_so.linalg.result import Result, Solved
from lightning_so.linalg.unseen import columns_of, eigh, maybe, pin, unseen

#: What the calls of a solve cost at any size, in multiply-adds of a matrix product.
CALLS = 1e7
#: Largest entry of Q' Q - I of a basis that `by_cholesky` found: it squares where the iteration has lost its digits.
DEVIATION = {torch.float32: 1e-4, torch.float64: 1e-12}
#: From F Q, Q and the order of the columns: the orthogonal factor, and which are good.
Factorisation = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def ridge(F_TT: Tensor, strength: float, floor: Tensor | None = None) -> Tensor:
    """An ordered ridge that breaks ties, `strength * (mean(diag F) + floor) * linspace(1, .5)`, shape (..., T).

    Inside a null space a basis is whatever rounding says, and one ulp on the weights then changes the run;
    the slope makes the null directions ordered axes.

    Args:
        F_TT: The factor, shape (..., T, T).
        strength: Relative size; 0 adds nothing.
        floor: What else is added to the diagonal, shape (..., 1).

    Returns:
        The diagonal to add, shape (..., T).
    """
    mean = F_TT.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    return strength * (mean if floor is None else mean + floor) * _slope(F_TT.shape[-1], F_TT.dtype, F_TT.device)


@cache
@torch.inference_mode(False)
def _slope(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.linspace(1.0, 0.5, side, dtype=dtype, device=device)


def fix_signs(Q_TT: Tensor, signs_T: Tensor) -> Tensor:
    """Flip the columns of Q whose sign is negative: LAPACK may flip any column from call to call."""
    return Q_TT * torch.ones_like(signs_T).copysign(signs_T).to(Q_TT.dtype)[..., None, :]


def by_householder(FQ_BTT: Tensor, Q_BTT: Tensor, order_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The orthogonal Q+ of `F Q P = Q+ R` with diag R > 0, by Householder's reflections.

    Args:
        FQ_BTT: F Q, shape (B, T, T).
        Q_BTT: Q, shape (B, T, T).
        order_BT: P, as the number of the column that each place gets.

    Returns:
        Q+, and which of them are good, shape (B,): a factor of zeros has none, nor one that is not finite.
    """
    Q, R = torch.linalg.qr(_ordered(FQ_BTT, order_BT))
    sizes = R.diagonal(dim1=1, dim2=2)
    Q = fix_signs(Q, sizes)
    # A factor of zeros leaves R = 0 and Q arbitrary but orthogonal: the last basis stays. Norms are NaN where an entry
    # is, and of a factor that is not finite an entry of R is not. Squares of small ones would be zero in float32.
    size = torch.linalg.vector_norm(sizes, dim=1, dtype=torch.float64)
    return Q, (size > 0) & (size * torch.linalg.vector_norm(Q, dim=(1, 2)) < torch.inf)


def by_cholesky(FQ_BTT: Tensor, Q_BTT: Tensor, order_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The same Q+ by two Cholesky factorisations, where F is positive definite and Q orthogonal.

        A = F Q P;   (Q P)' A = R1' R1;   A2 = A R1^-1;   A2' A2 = R2' R2;   Q+ = A2 R2^-1

    The first has the condition of F, not that of A' A, and A2 has its root; nothing has the size of F squared. Where
    that is too much for the precision the result is finite and not orthogonal.

    Source: Su 2025, kexue.fm 11697.

    Args:
        FQ_BTT: F Q, shape (B, T, T), in float32 or float64; products are to be made in it, see
            `precision.FullPrecision`.
        Q_BTT: Q, shape (B, T, T).
        order_BT: P, as of `by_householder`.

    Returns:
        Q+, and which of them are good, shape (B,): those with both factors, and `max |Q+' Q+ - I|` below `DEVIATION`.
    """
    A, Q = _ordered(FQ_BTT, order_BT), _ordered(Q_BTT, order_BT)
    A, failed = _over_root(A, torch.bmm(Q.mT, A))
    Q, failed_again = _over_root(A, torch.bmm(A.mT, A))
    apart = torch.bmm(Q.mT, Q)
    apart.diagonal(dim1=1, dim2=2).sub_(1)
    return Q, (apart.abs().amax((1, 2)) < DEVIATION[Q.dtype]) & (failed + failed_again == 0)


def _ordered(X_BTT: Tensor, order_BT: Tensor) -> Tensor:
    """Columns in an order."""
    return X_BTT.gather(2, order_BT[:, None].expand(X_BTT.shape))


def _over_root(A_BTT: Tensor, S_BTT: Tensor) -> tuple[Tensor, Tensor]:
    """`A R^-1` of S = R' R, of which the lower half is read, and 0 where there is one; the host waits for nothing."""
    L, failed = torch.linalg.cholesky_ex(S_BTT)
    return torch.linalg.solve_triangular(L.mT, A_BTT, upper=True, left=False), failed


def refresh(
    F_BTT: Tensor,
    Q_BTT: Tensor,
    *,
    strength: float,
    floor_B: Tensor | None = None,
    how: Factorisation = by_householder,
) -> Solved:
    """One orthogonal iteration of every basis: Q~ = qr((F + ridge) Q P), P sorting by diag(Q' F Q).

    The first rungs of the ladder. A factor that is zero or not finite, or whose basis is not finite, is marked; what
    `by_cholesky` leaves is for `by_householder`, and what that leaves for `decompose`. Axes of which F has seen nothing
    stay columns, exactly.

    Args:
        F_BTT: The factors, symmetric positive semi-definite, shape (B, T, T).
        Q_BTT: The last bases, orthogonal, shape (B, T, T).
        strength: Relative size of the tie-breaking ridge.
        floor_B: Added to the diagonals, shape (B,).
        how: What finds the orthogonal factor: `by_householder`, or for warm bases `by_cholesky`, which differs by
            rounding.

    Returns:
        The new bases and the permutations `order`: column j of a new basis continues column `order[b, j]` of the last.
    """
    dark = unseen(F_BTT)
    # Without a ridge, columns of a null space would be arbitrary in the decomposition: its axes take their own place.
    floor = None if floor_B is None else floor_B[:, None]
    added = ridge(F_BTT, strength, floor) if strength else dark * F_BTT.diagonal(dim1=1, dim2=2).amax(1, keepdim=True)
    added = added if floor is None else added + floor
    FQ = torch.bmm(F_BTT, Q_BTT).addcmul_(added[..., None], Q_BTT)
    order = (Q_BTT * FQ).sum(1).argsort(dim=1, descending=True, stable=True)
    Q, good = how(FQ, Q_BTT, order)
    if maybe(dark):
        columns, found = columns_of(Q_BTT, dark)
        pin(Q, dark, order.argsort(1).gather(1, columns))
        good = good & found  # Else seen long ago, and forgotten since.
    return Solved(Q, good, order)


def decompose(F_TT: Tensor, Q_TT: Tensor, strength: float, floor: Tensor | None = None) -> Result:
    """A basis from the factor alone, and the second rung of the ladder: eigh of F + ridge in float64.

    Args:
        F_TT: The factor, symmetric positive semi-definite, shape (..., T, T).
        Q_TT: A basis that decides the signs, shape (..., T, T).
        strength: Relative size of the tie-breaking ridge.
        floor: Added to the diagonal, shape (...).

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


def decomposed(F_BTT: Tensor, Q_BTT: Tensor, *, strength: float, floor_B: Tensor | None = None) -> Solved:
    """What `decompose` finds, as `refresh` gives it; the bases are good or bad together."""
    found = decompose(F_BTT, Q_BTT, strength, floor_B)
    same = torch.arange(F_BTT.shape[-1], device=F_BTT.device).expand(F_BTT.shape[:-1])
    return Solved(found.value, torch.full(F_BTT.shape[:1], found.ok, device=F_BTT.device), same)


def _raised(F_TT: Tensor, floor: Tensor | None) -> Tensor:
    """A factor with a floor under its diagonal."""
    if floor is None:
        return F_TT
    return F_TT + floor[..., None, None] * torch.eye(F_TT.shape[-1], dtype=F_TT.dtype, device=F_TT.device)


def refresh_cost(side: int) -> float:
    """Modelled cost of `refresh` in multiply-adds of a matrix product: a product, a QR (slow when small), calls."""
    return 6.0 * side**3 + 900.0 * side**2 + CALLS
