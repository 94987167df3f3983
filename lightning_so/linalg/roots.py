"""Inverse p-th roots of damped factors, `(F + d I)^(-1/p)`, batched over equal shapes.

Three ways: `eigen` (any real p, pseudo-inverse), `Newton` (integer p, in slices that can be resumed) and `schulz` (p a
power of two, products only). `inverse_root` climbs the failure ladder with any of them.

Legend: Q matrices of one shape, T side.
Source: Guo and Higham 2006, doi 10.1137/050643374, section 3 (coupled Newton); Higham 2008, Functions of Matrices,
section 6.3 (Newton-Schulz); Anil et al. 2020, arXiv 2002.09018, for their use.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_so.errors import ConfigError
from lightning_so.linalg.psd import ladder, or_identity
from lightning_so.linalg.result import Result
from lightning_so.linalg.unseen import apart, maybe, unseen

#: Largest residual of a good solve, of a decomposition and of an iteration.
DECOMPOSED, ITERATED = 1e-3, 0.1
WAYS = ("eigen", "newton", "schulz")


def inverse_root(
    F_QTT: Tensor, damping_Q: Tensor, p: float, *, way: str = "eigen", cutoff: float = 0.0, last: Tensor | None = None
) -> Result:
    """`(F + d I)^(-1/p)` of every factor of a batch, one rung of the ladder after the other until it is sound.

    Args:
        F_QTT: Factors, symmetric positive semi-definite, shape (Q, T, T).
        damping_Q: d >= 0 of each, shape (Q,).
        p: The root, > 0.
        way: "eigen", "newton" (p an integer) or "schulz" (p = 1, 2, 4, 8, ...).
        cutoff: Eigenvalues of at most this times the largest are left out (pseudo-inverse); "eigen" alone.
        last: The last inverse roots, from which "schulz" starts at p = 1 where they are near enough.

    Returns:
        The roots with their residual; `ok=False` if the factors are not finite or every rung failed.

    Raises:
        ConfigError: If the way cannot take this root or cutoff.
    """
    check_way(way, p, cutoff)
    attempts = 0
    sound = F_QTT.isfinite().all() & damping_Q.isfinite().all() & (damping_Q >= 0).all()
    sound, seen = torch.stack([sound, (F_QTT.diagonal(dim1=1, dim2=2) > 0).all()]).tolist()
    if sound:
        for attempts, F in enumerate(ladder(F_QTT, damping_Q), start=1):
            found = _once(F, p, way, cutoff, last)
            if found.ok:
                value = found.value.to(F_QTT.dtype)
                return replace(found, value=value if seen else apart(value, unseen(F_QTT)), attempts=attempts)
    return Result(F_QTT, ok=False, attempts=attempts, residual=math.inf)


def check_way(way: str, p: float, cutoff: float) -> None:
    """Refuse a root that a way cannot take.

    Args:
        way: The way.
        p: The root.
        cutoff: The rank cutoff.

    Raises:
        ConfigError: If they do not fit together.
    """
    if way not in WAYS:
        raise ConfigError(f"way={way!r}: it must be one of {list(WAYS)}.")
    if not (isinstance(p, int | float) and 0 < p < math.inf):
        raise ConfigError(f"p={p!r}: the root must be a number above 0.")
    if way == "newton" and p != int(p):
        raise ConfigError(f"p={p}: way='newton' takes integer roots; use way='eigen'.")
    if way == "schulz" and (p != int(p) or int(p) & (int(p) - 1)):
        raise ConfigError(f"p={p}: way='schulz' takes the roots 1, 2, 4, 8, ...; use way='newton' or way='eigen'.")
    if cutoff and way != "eigen":
        raise ConfigError(f"cutoff={cutoff}: only way='eigen' knows the rank.")


def _once(F: Tensor, p: float, way: str, cutoff: float, last: Tensor | None) -> Result:
    if way == "eigen":
        return eigen(F, p, cutoff)
    if way == "schulz":
        return schulz(F, int(p), last=last)
    newton = Newton.begin(F, int(p))
    newton.advance(100)
    return newton.result(F)


# ---------------------------------------------------------------- by eigenvalues


def eigen(F_QTT: Tensor, p: float, cutoff: float = 0.0) -> Result:
    """`Q l^(-1/p) Q'`, with the residual of the decomposition: eigh in float32 may return something else.

    Args:
        F_QTT: Symmetric positive definite, or semi-definite with a cutoff.
        p: The root.
        cutoff: Eigenvalues of at most this times the largest are left out.

    Returns:
        The roots.
    """
    try:
        value, kept, residual = _by_eigenvalues(F_QTT, p, cutoff)
    except torch.linalg.LinAlgError:
        return Result(F_QTT, ok=False)
    worst = _worst(residual)
    # Without a cutoff nothing may be missing: an eigenvalue that is not positive asks for more damping.
    whole = bool(kept.all()) if cutoff == 0 else bool(kept.any(1).all())
    return Result(value, whole and worst <= DECOMPOSED and bool(value.isfinite().all()), residual=worst)


def eigenroots(F_QTT: Tensor, damping_Q: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The first rung of `inverse_root` by eigenvalues, of each factor for itself.

    Args:
        F_QTT: Factors, symmetric positive semi-definite, shape (Q, T, T).
        damping_Q: d >= 0 of each, shape (Q,).
        p: The root.

    Returns:
        The roots, and which are sound, shape (Q,).
    """
    F = F_QTT + torch.diag_embed(damping_Q[:, None].expand(F_QTT.shape[:2]))
    finite = F.abs().amax((1, 2)) < torch.inf
    try:
        value, kept, residual = _by_eigenvalues(or_identity(F, finite), p, 0.0)
    except torch.linalg.LinAlgError:
        return F_QTT, torch.zeros_like(finite)
    sound = (residual <= DECOMPOSED) & kept.all(1) & (value.abs().amax((1, 2)) < torch.inf)
    dark = unseen(F_QTT)
    return apart(value, dark) if maybe(dark) else value, finite & sound


def _by_eigenvalues(F: Tensor, p: float, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """The roots, which eigenvalues they are of, (Q, T), and the residual of each decomposition, (Q,)."""
    tiny = torch.finfo(F.dtype).tiny
    values, vectors = torch.linalg.eigh(F)
    largest = values[:, -1:]
    kept = values > (cutoff * largest).clamp_min(0)
    roots = torch.where(kept, values.clamp_min(tiny), 1.0).pow(-1 / p) * kept
    again = (vectors * values[:, None]) @ vectors.mT
    residual = ((again - F) / largest[..., None].clamp_min(tiny)).abs().amax((1, 2))
    return (vectors * roots[:, None]) @ vectors.mT, kept, residual


# ---------------------------------------------------------------- by products


@dataclass
class Newton:
    """The coupled Newton iteration of a batch: `M = X^p A` comes to I. Can be advanced in slices.

        T = (1 + 1/p) I - M / p;    X <- X T;    M <- T^p M;    from X = z^(1/p) I, M = z A, z = (p + 1) / (2 |A|_F)

    Attributes:
        p: The root.
        X: Inverse roots so far, shape (Q, T, T).
        M: See above.
        iterations: Steps taken.
        residual: Largest entry of M - I.
    """

    p: int
    X: Tensor
    M: Tensor
    iterations: int = 0
    residual: float = math.inf

    @classmethod
    def begin(cls, A_QTT: Tensor, p: int) -> "Newton":
        """Before the first step."""
        z = (p + 1) / (2 * A_QTT.flatten(1).norm(dim=1).clamp_min(torch.finfo(A_QTT.dtype).tiny))[:, None, None]
        return cls(p, z ** (1 / p) * _eye(A_QTT), z * A_QTT)

    def advance(self, steps: int, tolerance: float = 1e-6) -> bool:
        """Take some steps.

        Args:
            steps: At most this many.
            tolerance: Of the residual.

        Returns:
            Whether it is done: converged, or at the end of what the precision gives.
        """
        eye = _eye(self.X)
        for _ in range(steps):
            T = (1 + 1 / self.p) * eye - self.M / self.p
            X, M = self.X @ T, torch.linalg.matrix_power(T, self.p) @ self.M
            residual = _worst(M - eye)
            if not residual < 1.2 * self.residual:  # growing, or not a number
                return True
            self.X, self.M, self.residual = X, M, residual
            self.iterations += 1
            if residual <= tolerance:
                return True
        return False

    def result(self, A_QTT: Tensor) -> Result:
        """What there is now, with the true residual, `X^p A - I`."""
        return _judged(self.X, A_QTT, self.p, self.iterations)


def schulz(A_QTT: Tensor, p: int, *, steps: int = 60, last: Tensor | None = None) -> Result:
    """Newton-Schulz iterations: products only.

        p = 1: X <- X (2 I - A X);    p = 2: T = (3 I - Z Y) / 2, Y <- Y T, Z <- T Z, from Y = A / |A|_F, Z = I

    Z comes to the inverse square root and Y to the square root, whose own inverse square root is that of p = 4.

    Args:
        A_QTT: Symmetric positive definite, shape (Q, T, T).
        p: 1, 2, 4, 8, ...
        steps: Most steps of each iteration.
        last: For p = 1, where to start where `|I - A last| < 1`.

    Returns:
        The roots.
    """
    scale = A_QTT.flatten(1).norm(dim=1).clamp_min(torch.finfo(A_QTT.dtype).tiny)[:, None, None]
    A, eye, taken = A_QTT / scale, _eye(A_QTT), 0
    if p == 1:
        X, taken = _reciprocal(A, eye, None if last is None else last.to(A.dtype) * scale, steps)
        return _judged(X / scale, A_QTT, 1, taken)
    root, Z = p, eye
    while root > 1:
        A, Z, count = _square_root(A, eye, steps)
        taken, root = taken + count, root // 2
    return _judged(Z / scale ** (1 / p), A_QTT, p, taken)


def _reciprocal(A: Tensor, eye: Tensor, last: Tensor | None, steps: int) -> tuple[Tensor, int]:
    X = eye.expand_as(A).clone()
    if last is not None:
        near = (eye - A @ last).flatten(1).norm(dim=1) < 1
        X = torch.where(near[:, None, None], last, X)
    best = math.inf
    for step in range(steps):
        R = eye - A @ X
        residual = _worst(R)
        if not residual < best or residual <= 10 * torch.finfo(A.dtype).eps:
            return X, step
        best, X = max(residual, 1e-30), X + X @ R
    return X, steps


def _square_root(A: Tensor, eye: Tensor, steps: int) -> tuple[Tensor, Tensor, int]:
    """Square root, inverse square root and the steps they took."""
    Y, Z, best = A, eye.expand_as(A).clone(), math.inf
    for step in range(steps):
        R = eye - Z @ Y
        residual = _worst(R)
        if not residual < best or residual <= 10 * torch.finfo(A.dtype).eps:
            return Y, Z, step
        T = eye + R / 2
        best, Y, Z = residual, Y @ T, T @ Z
    return Y, Z, steps


def _judged(X: Tensor, A: Tensor, p: int, iterations: int) -> Result:
    """A result by what `X^p A` differs from I."""
    X = (X + X.mT) / 2
    residual = _worst(torch.linalg.matrix_power(X, p) @ A - _eye(A))
    ok = residual <= ITERATED and bool(X.isfinite().all())
    return Result(X, ok, iterations=iterations, residual=residual)


def _worst(R: Tensor) -> float:
    """The largest entry; not a number if one is none."""
    return float(R.abs().amax()) if R.numel() else 0.0


def _eye(A: Tensor) -> Tensor:
    return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)


def root_cost(side: int) -> float:
    """Modelled cost of `eigen` of one matrix, in multiply-adds of a matrix product."""
    return 14.0 * side**3 + 900.0 * side**2 + 1e6
