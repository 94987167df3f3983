"""*Rotate*: the base optimizer runs in a curvature eigenbasis, and its moments move when the basis does.

    g' = Q_L' g Q_R;   the base steps on the hidden parameter, which then holds d;   p <- p0 (1 - lr wd) + Q_L d Q_R'

First moments are carried exactly; second moments are permuted with the sorted eigenvalues, and start from the factors.
A block may be several groups, one below the other, each with a basis of its own.
Legend: Q groups, M rows of each, N columns, T side of a tile.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_so.actions.moments import Base
from lightning_so.linalg.kron import permuted

States = list[dict]
Move = Callable[[Tensor], Tensor]


def carry(
    base: Base,
    states: States,
    shape: tuple[int, int, int],
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
        states: The optimizer's states of the block's parameters.
        shape: (Q, M, N).
        cut: The tile.
        side: 0 for rows, 1 for columns.
        old: The basis that was, shape (Q, T, T).
        new: The basis that is, shape (Q, T, T).
        order: Column j of `new` continues column `order[q, j]` of `old`, shape (Q, T).
        least: See `Base.least_variance`.
    """
    for key in base.first:
        with _matrix(states, key, shape) as m:
            if m is not None:
                part = m[:, cut] if side == 0 else m[:, :, cut]
                wide = part.to(new.dtype)
                part.copy_(new.mT @ (old @ wide) if side == 0 else (wide @ old.mT) @ new)
    for key in base.second:
        with _matrix(states, key, shape) as v:
            if v is not None:
                part = v[:, cut] if side == 0 else v[:, :, cut]
                part.copy_(permuted(part, order, side))
    _keep_possible(states, least)


def enter(
    base: Base,
    states: States,
    shape: tuple[int, int, int],
    rotate: Move,
    row_values: Tensor,
    col_values: Tensor,
    least: float,
) -> None:
    """Move one block's moments into its first basis, in place.

    First moments exactly; second moments from the factors, scaled to the base's own sum S of every group (invariant
    under rotation): `v_ij = S l_i r_j / (tr L tr R)`.

    Args:
        base: The optimizer's entry in the registry.
        states: The optimizer's states of the block's parameters.
        shape: (Q, M, N).
        rotate: Maps a matrix of shape (Q M, N) into the basis.
        row_values: l, eigenvalue estimates of the row factor, shape (Q, M).
        col_values: r, of the column factor, shape (Q, N).
        least: See `Base.least_variance`.
    """
    for key in base.first:
        with _matrix(states, key, shape) as m:
            if m is not None:
                m.copy_(rotate(m.to(row_values.dtype).flatten(0, 1)).view(shape))
    # Each side is normalised first: the product of two small traces underflows. Factors of zeros leave v at zero.
    tiny = torch.finfo(row_values.dtype).tiny
    rows, cols = (values / values.sum(1, keepdim=True).clamp_min(tiny) for values in (row_values, col_values))
    share = rows[:, :, None] * cols[:, None]
    for key in base.second:
        with _matrix(states, key, shape) as v:
            if v is not None:
                v.copy_(v.sum((1, 2), keepdim=True, dtype=share.dtype) * share)
    _keep_possible(states, least)


def depart(
    base: Base, states: States, shape: tuple[int, int, int], leave: Move, leave_squares: Move, least: float
) -> None:
    """Take one block's moments out of its basis for good, in place: first exactly, second by squared overlap.

    Args:
        base: The optimizer's entry in the registry.
        states: The optimizer's states of the block's parameters.
        shape: (Q, M, N).
        leave: Maps a matrix (Q M, N) out of the basis, `Q_L m Q_R'`.
        leave_squares: The same with squared bases, `(Q_L.^2) v (Q_R.^2)'`.
        least: See `Base.least_variance`.
    """
    for keys, move in ((base.first, leave), (base.second, leave_squares)):
        for key in keys:
            with _matrix(states, key, shape) as x:
                if x is not None:
                    x.copy_(move(x.flatten(0, 1)).view(shape))
    _keep_possible(states, least)


def _keep_possible(states: States, least: float) -> None:
    """Raise second moments to what a sequence of gradients with this first moment must have left at the least.

    Moved by different rules they fall below it where a factor has a null space (rows of an embedding that are rare):
    one step of an Adam is then hundreds of learning rates long, and centred RMSprop takes the root of less than zero.

    Args:
        states: The optimizer's states of the block's parameters.
        least: See `Base.least_variance`.
    """
    for state in states:
        if least > 0 and state.get("exp_avg") is not None:
            # A maximum over time that is below is as impossible.
            for key in ("exp_avg_sq", "max_exp_avg_sq"):
                if state.get(key) is not None:
                    torch.maximum(state[key], state["exp_avg"].square() * least, out=state[key])
        if state.get("grad_avg") is not None:
            state["square_avg"].copy_(torch.maximum(state["square_avg"], state["grad_avg"].square() * (1 + 1e-6)))


@contextmanager
def _matrix(states: States, key: str, shape: tuple[int, int, int]) -> Iterator[Tensor | None]:
    """One moment of a block's parameters as matrices of its groups, written back at the end; None if there is none.

    A bias is the last column: zeros that are not kept, where it has had no gradient yet.
    """
    tensors = [state.get(key) for state in states]
    found = next((tensor for tensor in tensors if tensor is not None), None)
    if found is None:
        yield None
        return
    rows = shape[0] * shape[1]
    widths = [shape[2] - (len(states) - 1), *[1] * (len(states) - 1)]
    parts = [
        found.new_zeros(rows, width) if tensor is None else tensor.reshape(rows, width)
        for tensor, width in zip(tensors, widths, strict=True)
    ]
    matrix = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    yield matrix.view(shape)
    if matrix.data_ptr() != found.data_ptr() or not found.is_contiguous():
        for tensor, part in zip(tensors, matrix.split(widths, 1), strict=True):
            if tensor is not None:
                tensor.copy_(part.reshape(tensor.shape))
