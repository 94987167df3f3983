"""Axes of which a factor has seen nothing (rows of zeros: padding, dead inputs): they stay axes in what is made of it.

Decompositions mix them with the others by rounding, and an Adam makes a whole step of any gradient that is not zero.

Legend: T side of a tile; Q basis.
"""

import torch
from torch import Tensor


def unseen(F_TT: Tensor) -> Tensor:
    """Which rows of a factor are zero, shape (..., T)."""
    none = F_TT.diagonal(dim1=-2, dim2=-1) == 0
    return (F_TT.amax(-1) == 0) & (F_TT.amin(-1) == 0) if maybe(none) else none


def maybe(flags: Tensor) -> bool:
    """Whether any flag may be set: a CPU tells, another device is not waited for, and a shape without numbers may."""
    return flags.device.type != "cpu" or type(flags) is not Tensor or bool(flags.numpy().any())


def columns_of(Q_TT: Tensor, unseen_T: Tensor) -> tuple[Tensor, Tensor]:
    """Which column of a basis each axis is of which a factor has seen nothing.

    Args:
        Q_TT: The basis, orthogonal, shape (..., T, T).
        unseen_T: See the function.

    Returns:
        The numbers of the columns, shape (..., T), of no meaning for other axes; and whether each of these axes is one,
        shape (...).
    """
    largest, columns_T = Q_TT.max(-1)
    return columns_T, ((largest == 1) | ~unseen_T).all(-1)


def pin(Q_TT: Tensor, unseen_T: Tensor, columns_T: Tensor) -> Tensor:
    """Make columns of a basis that are axes up to rounding exact ones, in place: no other column has a part of them.

    Args:
        Q_TT: The basis, shape (..., T, T).
        unseen_T: Which axes.
        columns_T: The column of each.

    Returns:
        The basis.
    """
    ones = unseen_T.to(Q_TT.dtype)
    Q_TT.mul_((1 - ones)[..., None]).mul_((1 - torch.zeros_like(ones).scatter_add_(-1, columns_T, ones))[..., None, :])
    return Q_TT.scatter_add_(-1, columns_T[..., None], ones[..., None])


def eigh(F_TT: Tensor, unseen_T: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors; axes that were not seen come first, exactly, in reverse order.

    Args:
        F_TT: The factor, symmetric positive semi-definite up to rounding, shape (..., T, T).
        unseen_T: See the function.

    Returns:
        The eigenvalues, those of axes that were not seen below zero; and the eigenvectors.

    Raises:
        LinAlgError: If it does not converge.
    """
    if not bool(unseen_T.any()):
        return torch.linalg.eigh(F_TT)
    # Far from all others, so that rounding alone mixes them with these.
    below = -F_TT.abs().amax((-2, -1))[..., None] - F_TT.diagonal(dim1=-2, dim2=-1)
    values_T, Q_TT = torch.linalg.eigh(F_TT + torch.diag_embed(torch.where(unseen_T, below, 0.0)))
    columns_T = unseen_T.flip(-1).cumsum(-1).flip(-1) - 1
    return values_T, pin(Q_TT, unseen_T, columns_T.clamp_min(0))


def apart(X_TT: Tensor, unseen_T: Tensor) -> Tensor:
    """A function of a factor, such as its inverse root, without what rounding mixes of axes that were not seen.

    Args:
        X_TT: The function, shape (..., T, T).
        unseen_T: See the function.

    Returns:
        It, where axes that were not seen have their diagonal entries alone.
    """
    off = ~torch.eye(X_TT.shape[-1], dtype=torch.bool, device=X_TT.device)
    return X_TT.masked_fill((unseen_T[..., None] | unseen_T[..., None, :]) & off, 0.0)
