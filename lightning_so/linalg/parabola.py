"""Parabolas in a few directions: their curvatures from displacements and gradients, and the steps that they suggest."""

import torch
from torch import Tensor

#: Directions with less than this share of all movement say nothing of their curvature.
UNMOVED = 1e-12


def regression(C_kk: Tensor, D_kk: Tensor) -> Tensor:
    """The symmetric matrix that explains gradients by positions best: least squares of `y = H x`.

        H C + C H = D + D',   C = mean of x x',   D = mean of y x'   (centred)

    Exact where y is linear in x and C has full rank; entries between directions in which nothing has moved are 0.

    Source: Duda 2019, arXiv 1901.11457; the solution of the Lyapunov equation, not the symmetric part of `D / C`.

    Args:
        C_kk: Second moments of the displacements, shape (k, k).
        D_kk: Mixed moments of gradients (rows) and displacements (columns), shape (k, k).

    Returns:
        H, shape (k, k).
    """
    moments, Q = torch.linalg.eigh(C_kk)
    sums = moments[:, None] + moments
    moved = sums > UNMOVED * moments.sum()
    middle = torch.where(moved, Q.mT @ (D_kk + D_kk.mT) @ Q / torch.where(moved, sums, 1.0), 0.0)
    return Q @ middle @ Q.mT


def strides(curvatures_k: Tensor, longest: Tensor | float) -> Tensor:
    """How far to go along each direction per unit of slope: `min(1 / |curvature|, longest)`.

    Attracted by a minimum, repelled by a maximum, at the modelled distance of either.

    Source: Dauphin et al. 2014, arXiv 1406.2572; Duda 2019, arXiv 1907.07063.

    Args:
        curvatures_k: Curvatures, shape (k,).
        longest: The bound, where there is little curvature.

    Returns:
        Strides, shape (k,).
    """
    bound = torch.as_tensor(longest, dtype=curvatures_k.dtype, device=curvatures_k.device)
    return torch.minimum(1 / curvatures_k.abs(), bound)  # 1 / 0 is infinite, and the bound holds.
