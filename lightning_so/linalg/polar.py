"""The orthogonal polar factor of a matrix, by Newton-Schulz iterations or by poles (see `poles`), batched.

Legend: B matrices, M rows, N columns.
"""

import math

import torch
from torch import Tensor

from lightning_so.linalg.poles import Poles, poles, rational, resolves

#: Quintic coefficients of Jordan et al. (2024, "Muon"): steep at 0: 5 steps lift small singular values to about 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
#: Largest eigenvalue below zero of a Gram matrix that does not matter: a + b x is by 7 % another at x = -.05.
SMALL = 0.05


#: What a pole costs, in products of matrices of the short side: its factorisation and its inverse are slower ones.
POLE = 3.0


def polar(X_BMN: Tensor, *, steps: int = 5, precision: torch.dtype | None = None) -> Tensor:
    """Approximate U V' of X = U S V', for every matrix of a batch.

    Iterates X <- a X + (b A + c A^2) X, A = X X', from X / |X|_F; the singular values end within about [.7, 1.2]. On a
    CPU poles that reach as far down as these steps are cheaper, and end within [.75, 1.25]: see `pole_way`.

    Args:
        X_BMN: The matrices, shape (B, M, N), any floating dtype.
        steps: Newton-Schulz steps.
        precision: dtype of the products (the input's own by default); bfloat16 where the hardware is fast at it.

    Returns:
        The factors, shape (B, M, N), dtype of X. A zero matrix gives zero.
    """
    tall = X_BMN.shape[1] > X_BMN.shape[2]
    # Scale by the largest entry first: the norm of a gradient of 1e-30 underflows when squared in float32.
    peak = X_BMN.abs().amax(dim=(1, 2), keepdim=True)
    X = X_BMN / peak.clamp_min(torch.finfo(X_BMN.dtype).tiny)
    precision = precision or X.dtype
    found = pole_way(X.device, steps, precision)
    if found is None:
        X = _newton_schulz(X.mT, steps, precision).mT if tall else _newton_schulz(X, steps, precision)
        return X.to(X_BMN.dtype)
    X = X.to(precision)
    R = rational(torch.bmm(X.mT, X) if tall else torch.bmm(X, X.mT), found)
    return (torch.bmm(X, R) if tall else torch.bmm(R, X)).to(X_BMN.dtype)


def pole_way(device: torch.device, steps: int, precision: torch.dtype) -> Poles | None:
    """The poles that take the place of Newton-Schulz steps.

    A function of what is the same on every rank: the ways differ by more than rounding.

    Args:
        device: Where the matrices are.
        steps: Newton-Schulz steps, which multiply small singular values by 3.44 each.
        precision: dtype of the products.

    Returns:
        The poles, with about the same slope at 0; None where the iteration is taken: on accelerators, which multiply
        much faster than they factorise, in half precision, and where Gram matrices do not resolve the least pole
        (above 6 steps in float32, 14 in float64).
    """
    if device.type != "cpu" or precision not in (torch.float32, torch.float64):
        return None
    found = poles(COEFFICIENTS[0] ** -steps)
    return found if resolves(found, precision) else None


def _newton_schulz(X_BMN: Tensor, steps: int, precision: torch.dtype) -> Tensor:
    """The iteration on matrices that are not tall, of entries up to 1."""
    a, b, c = COEFFICIENTS
    X = X_BMN / X_BMN.norm(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    X = X.to(precision)
    if _gram_pays(X.shape[1], X.shape[2], steps, X.dtype):
        for some in _stretches(steps, X.dtype):
            X = torch.bmm(_gram(torch.bmm(X, X.mT), some), X)
        return X
    for _ in range(steps):
        A = torch.bmm(X, X.mT)
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X


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


def polar_cost(
    shape: tuple[int, int], steps: int, precision: torch.dtype = torch.float32, device: torch.device | None = None
) -> float:
    """Multiply-adds of `polar` on one matrix, in a precision of the products; by steps where no device is told."""
    short, long = sorted(shape)
    found = None if device is None else pole_way(device, steps, precision)
    if found is not None:
        return 2.0 * short * short * long + POLE * len(found.shifts) * short**3
    return min(_plain_cost(short, long, steps), _gram_cost(short, long, steps, precision))
