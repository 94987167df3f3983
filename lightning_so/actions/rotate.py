"""*Rotate*: the base optimizer runs in a curvature eigenbasis, and its moments move when the basis does.

    g' = Q_L' g Q_R;   the base steps on the hidden parameter, which then holds d;   p <- p0 (1 - lr wd) + Q_L d Q_R'

First moments are carried exactly; second moments are permuted with the sorted eigenvalues, and start from the factors.
Legend: M rows, N columns of one block, T side of a tile.
"""

import torch
from torch import Tensor

from lightning_so.actions.moments import Base


def carry(
    base: Base,
    state: dict,
    shape: tuple[int, int],
    cut: slice,
    side: int,
    old: Tensor,
    new: Tensor,
    order: Tensor,
    least: float,
) -> None:
    """Move one block's moments along when one tile of one side changes its basis, in place.

    `m <- new' old m` on the tile's rows (`m old' new` on its columns); v is permuted by `order`.

    Args:
        base: The optimizer's entry in the registry.
        state: The optimizer's state of the parameter.
        shape: (M, N).
        cut: The tile.
        side: 0 for rows, 1 for columns.
        old: The basis that was, shape (T, T).
        new: The basis that is, shape (T, T).
        order: Column j of `new` continues column `order[j]` of `old`.
        least: See `Base.least_variance`.
    """
    for key in base.first:
        if state.get(key) is not None:
            with _matrix(state[key], shape) as m:
                part = m[cut] if side == 0 else m[:, cut]
                moved = new.mT @ (old @ part.to(new.dtype)) if side == 0 else (part.to(new.dtype) @ old.mT) @ new
                part.copy_(moved)
    for key in base.second:
        if state.get(key) is not None:
            with _matrix(state[key], shape) as v:
                part = v[cut] if side == 0 else v[:, cut]
                part.copy_(part.index_select(side, order))
    _keep_possible(state, least)


def enter(
    base: Base,
    state: dict,
    shape: tuple[int, int],
    rotate,
    row_values: Tensor,
    col_values: Tensor,
    least: float,
) -> None:
    """Move one block's moments into its first basis, in place.

    First moments exactly; second moments from the factors, scaled to the base's own sum S (invariant under rotation):
    `v_ij = S l_i r_j / (tr L tr R)`.

    Args:
        base: The optimizer's entry in the registry.
        state: The optimizer's state of the parameter.
        shape: (M, N).
        rotate: Maps a matrix of shape (M, N) into the basis.
        row_values: l, eigenvalue estimates of the row factor, shape (M,).
        col_values: r, of the column factor, shape (N,).
        least: See `Base.least_variance`.
    """
    for key in base.first:
        if state.get(key) is not None:
            with _matrix(state[key], shape) as m:
                m.copy_(rotate(m.to(row_values.dtype)))
    # Each side is normalised first: the product of two small traces underflows. Factors of zeros leave v at zero.
    tiny = torch.finfo(row_values.dtype).tiny
    share = torch.outer(row_values / row_values.sum().clamp_min(tiny), col_values / col_values.sum().clamp_min(tiny))
    for key in base.second:
        if state.get(key) is not None:
            with _matrix(state[key], shape) as v:
                v.copy_(v.sum(dtype=share.dtype) * share)
    _keep_possible(state, least)


def depart(base: Base, state: dict, shape: tuple[int, int], leave, leave_squares, least: float) -> None:
    """Take one block's moments out of its basis for good, in place: first exactly, second by squared overlap.

    Args:
        base: The optimizer's entry in the registry.
        state: The optimizer's state of the parameter.
        shape: (M, N).
        leave: Maps a matrix out of the basis, `Q_L m Q_R'`.
        leave_squares: The same with squared bases, `(Q_L.^2) v (Q_R.^2)'`.
        least: See `Base.least_variance`.
    """
    for keys, move in ((base.first, leave), (base.second, leave_squares)):
        for key in keys:
            if state.get(key) is not None:
                with _matrix(state[key], shape) as x:
                    x.copy_(move(x))
    _keep_possible(state, least)


def _keep_possible(state: dict, least: float) -> None:
    """Raise second moments to what a sequence of gradients with this first moment must have left at the least.

    Moved by different rules they fall below it where a factor has a null space (rows of an embedding that are rare):
    one step of an Adam is then hundreds of learning rates long, and centred RMSprop takes the root of less than zero.

    Args:
        state: The optimizer's state of one parameter.
        least: See `Base.least_variance`.
    """
    if least > 0 and state.get("exp_avg") is not None:
        # A maximum over time that is below is as impossible.
        for key in ("exp_avg_sq", "max_exp_avg_sq"):
            if state.get(key) is not None:
                torch.maximum(state[key], state["exp_avg"].square() * least, out=state[key])
    if state.get("grad_avg") is not None:
        state["square_avg"].copy_(torch.maximum(state["square_avg"], state["grad_avg"].square() * (1 + 1e-6)))


class _matrix:
    """A (possibly strided or higher-dimensional) state tensor as a matrix that is written back on exit."""

    def __init__(self, tensor: Tensor, shape: tuple[int, int]) -> None:
        self.tensor = tensor
        self.matrix = tensor.reshape(shape)

    def __enter__(self) -> Tensor:
        return self.matrix

    def __exit__(self, *_: object) -> None:
        if self.matrix.data_ptr() != self.tensor.data_ptr() or not self.tensor.is_contiguous():
            self.tensor.copy_(self.matrix.view(self.tensor.shape))
