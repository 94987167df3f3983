"""The orthogonal polar factor of a matrix by few poles: Zolotarev's rational function of its Gram matrix, batched.

    U V' ~ r(A) X,    A = X X',    r(a) = c (1 + sum_j w_j / (a + p_j))

`sqrt(a) r(a)` is the best approximation of 1 over singular values in [l, 1] among all functions of its degree: 2 poles
give [.85, 1.15] from l = .002 on, where five Newton-Schulz steps give [.7, 1.2]. A pole costs a Cholesky factorisation
and an inverse of the short side; a processor that is fast at them needs a third of the time of the products.
Source: Nakatsukasa and Freund 2016, "Computing fundamental matrix decompositions accurately via the matrix sign
function in two iterations: the power of Zolotarev's functions", section 3.

Legend: B matrices, M rows (the short side), P poles.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import torch
from torch import Tensor

#: Poles are added until singular values end within 1 - ERROR and 1 + ERROR.
ERROR = 0.25
#: Least pole, in roundings of A: A has eigenvalues of minus a few of them in its null space.
LEAST = 16


@dataclass(frozen=True)
class Poles:
    """The function's numbers.

    Attributes:
        scale: c.
        weights: w, one a pole.
        shifts: p, one a pole, rising.
        error: The largest distance of a singular value's image from 1.
    """

    scale: float
    weights: tuple[float, ...]
    shifts: tuple[float, ...]
    error: float


@lru_cache
def poles(least: float) -> Poles:
    """The fewest poles that bring singular values in [least, 1] near 1.

    Args:
        least: l, in (0, 1).

    Returns:
        The function, with an error of at most `ERROR`.
    """
    return next(found for number in count(1) if (found := _zolotarev(least, number)).error <= ERROR)


def resolves(found: Poles, dtype: torch.dtype) -> bool:
    """Whether Gram matrices of a dtype are exact enough for the least pole."""
    return found.shifts[0] >= LEAST * torch.finfo(dtype).eps


def rational(A_BMM: Tensor, found: Poles) -> Tensor:
    """R with R X near the polar factor of X, for every matrix of a batch.

    Singular values are taken relative to the root of |A|_F, which bounds the largest and is the fourth root of the sum
    of their fourth powers.

    Args:
        A_BMM: X X' of matrices whose largest entry is 1, shape (B, M, M), float32 or float64; or of zeros.
        found: The function.

    Returns:
        R, shape (B, M, M); NaN where A is not positive semidefinite to rounding.
    """
    # An entry of 1 gives A a norm of at least 1: a floor that only zeros meet.
    size_B = torch.linalg.vector_norm(A_BMM, dim=(1, 2)).clamp_min_(1)
    number, count = len(found.shifts), len(A_BMM)
    shifted = A_BMM.repeat(number, 1, 1)
    shifts_P = torch.tensor(found.shifts, dtype=A_BMM.dtype, device=A_BMM.device)
    shifted.diagonal(dim1=1, dim2=2).add_((shifts_P[:, None] * size_B).view(-1, 1))
    L, info = torch.linalg.cholesky_ex(shifted, upper=True)
    inverses_PBMM = torch.cholesky_inverse(L, upper=True).view(number, count, *A_BMM.shape[1:])
    R = inverses_PBMM[0].mul_(found.weights[0])
    for inverse, weight in zip(inverses_PBMM[1:], found.weights[1:], strict=True):
        R.add_(inverse, alpha=weight)
    root_B = size_B.sqrt()
    broken_B = (info.view(number, count) != 0).any(0)
    R.mul_(torch.where(broken_B, math.nan, found.scale * root_B)[:, None, None])
    R.diagonal(dim1=1, dim2=2).add_((found.scale / root_B)[:, None])
    return R


def _zolotarev(least: float, number: int) -> Poles:
    """The best function of some number of poles over [least, 1]."""
    c = [least**2 * tangent**2 for tangent in _tangents(least, 2 * number)]
    p, zeros = c[::2], c[1::2]
    weights = []
    for j in range(number):
        above = math.prod(zero - p[j] for zero in zeros)
        below = math.prod(p[k] - p[j] for k in range(number) if k != j)
        weights.append(above / below)

    def image(x: float) -> float:
        return x * (1 + sum(w / (x * x + shift) for w, shift in zip(weights, p, strict=True)))

    # Its images of l and 1 are the least and the largest, among others between.
    low, high = image(least), image(1.0)
    return Poles(2 / (low + high), tuple(weights), tuple(p), (high - low) / (high + low))


def _tangents(least: float, count: int) -> list[float]:
    """Values of sn / cn of the modulus sqrt(1 - l^2) at i K / (count + 1), i = 1 to count: by means of two kinds."""
    means, halves = [(1.0, least)], list[float]()
    while means[-1][0] - means[-1][1] > 1e-15:
        a, b = means[-1]
        means.append(((a + b) / 2, math.sqrt(a * b)))
        halves.append((a - b) / 2 / means[-1][0])
    found = []
    for i in range(1, count + 1):
        # 2^n a u, of K = pi / (2 a).
        phi = 2 ** len(halves) * math.pi / 2 * i / (count + 1)
        for ratio in reversed(halves):
            phi = (phi + math.asin(ratio * math.sin(phi))) / 2
        found.append(math.tan(phi))
    return found
