"""*Rotate*: the base optimizer runs in a curvature eigenbasis, and its moments move when the basis does.

    g' = Q_L' g Q_R;   the base steps on the hidden parameter, which then holds d;   p <- p0 (1 - lr wd) + Q_L d Q_R'

First moments are carried exactly; second moments are permuted with the sorted eigenvalues, and start from the factors.
A block may be several groups, one below the other, each with a basis of its own.
Legend: Q groups, M rows of each, N columns, T side of a tile.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_so.actions.moments import Base
from lightning_so.linalg.kron import permuted

States = list[dict]
Move = Callable[[Tensor], Tensor]


def carry(
    base: Base,
    blocks: Sequence[States],
    shape: tuple[int, int, int],
    cut: slice,
    side: int,
    old: Tensor,
    new: Tensor,
    order: Tensor,
    least: Sequence[float],
) -> None:
    """Move the moments of k blocks along when one tile of one side of each changes its basis, in place.

    `m <- new' old m` on the tile's rows (`m old' new` on its columns); v is permuted by `order`.

    Args:
        base: The optimizer's entry in the registry.
        blocks: Of each block, the optimizer's states of its parameters.
        shape: (Q, M, N) of each.
        cut: The tile.
        side: 0 for rows, 1 for columns.
        old: The bases that were, shape (k, Q, T, T).
        new: The bases that are, shape (k, Q, T, T).
        order: Column j of `new` continues column `order[b, q, j]` of `old`, shape (k, Q, T).
        least: See `Base.least_variance`, of each block.
    """

    def turned(part: Tensor, chosen: list[int]) -> Tensor:
        before, after = ((Q if len(chosen) == len(Q) else Q[chosen]).flatten(0, 1) for Q in (old, new))
        wide = part.to(new.dtype)
        if side == 0:
            return torch.bmm(after.mT, torch.bmm(before, wide))
        return torch.bmm(torch.bmm(wide, before.mT), after)

    def moved(part: Tensor, chosen: list[int]) -> Tensor:
        orders = order if len(chosen) == len(order) else order[chosen]
        return permuted(part, orders.flatten(0, 1), side)

    for keys, change in ((base.first, turned), (base.second, moved)):
        for key in keys:
            chosen = [at for at, states in enumerate(blocks) if any(state.get(key) is not None for state in states)]
            if chosen:
                with _tiles([[state.get(key) for state in blocks[at]] for at in chosen], shape, cut, side) as parts:
                    tile = torch.stack([part[0] if len(part) == 1 else torch.cat(part, 2) for part in parts])
                    _fill(parts, change(tile.flatten(0, 1), chosen).view(tile.shape))
    _keep_possible(blocks, least)


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
    _keep_possible([states], [least])


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
    _keep_possible([states], [least])


@contextmanager
def _tiles(
    blocks: list[list[Tensor | None]], shape: tuple[int, int, int], cut: slice, side: int
) -> Iterator[list[list[Tensor]]]:
    """A tile of one moment of every block, (Q, T, N) or (Q, M, T), as views of its parameters' parts of it.

    A bias is the last column; one without a moment is a column of zeros. What has another layout in memory is written
    back at the end.
    """
    wide = [list(zip(tensors, _columns(tensors, shape), strict=True)) for tensors in blocks]
    found = []
    for matrices in wide:
        parts, begin = list[Tensor](), 0
        for _, matrix in matrices:
            width = matrix.shape[2]
            part = matrix[:, cut] if side == 0 else matrix[:, :, max(cut.start - begin, 0) : max(cut.stop - begin, 0)]
            parts += [part] if part.numel() else []
            begin += width
        found.append(parts)
    yield found
    for tensor, matrix in (pair for matrices in wide for pair in matrices):
        if tensor is not None and (matrix.data_ptr() != tensor.data_ptr() or not tensor.is_contiguous()):
            tensor.copy_(matrix.reshape(tensor.shape))


def _fill(parts: list[list[Tensor]], values: Tensor) -> None:
    """Write values, (k, Q, T, N) or (k, Q, M, T), into the parts of k tiles, in one call."""
    widths = [part.shape[2] for part in parts[0]]
    pieces = [piece for value in values.unbind(0) for piece in value.split(widths, 2)]
    torch._foreach_copy_([part for of_block in parts for part in of_block], pieces)


def _keep_possible(blocks: Sequence[States], least: Sequence[float]) -> None:
    """Raise second moments to what a sequence of gradients with this first moment must have left at the least.

    Moved by different rules they fall below it where a factor has a null space (rows of an embedding that are rare):
    one step of an Adam is then hundreds of learning rates long, and centred RMSprop takes the root of less than zero.

    Args:
        blocks: Of each block, the optimizer's states of its parameters.
        least: See `Base.least_variance`, of each block.
    """
    found = list[tuple[Tensor, Tensor, float]]()
    for states, bound in zip(blocks, least, strict=True):
        for state in states:
            if bound > 0 and state.get("exp_avg") is not None:
                # A maximum over time that is below is as impossible.
                seconds = [state[key] for key in ("exp_avg_sq", "max_exp_avg_sq") if state.get(key) is not None]
                found += [(second, state["exp_avg"], bound) for second in seconds]
            if state.get("grad_avg") is not None:
                found.append((state["square_avg"], state["grad_avg"], 1 + 1e-6))
    if found:
        raised, first, times = (list(some) for some in zip(*found, strict=True))
        floors = torch._foreach_mul(first, first)
        torch._foreach_mul_(floors, times)
        torch._foreach_maximum_(raised, floors)


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
    parts = _columns(tensors, shape)
    matrix = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    yield matrix
    if matrix.data_ptr() != found.data_ptr() or not found.is_contiguous():
        for tensor, part in zip(tensors, matrix.split([part.shape[2] for part in parts], 2), strict=True):
            if tensor is not None:
                tensor.copy_(part.reshape(tensor.shape))


def _columns(tensors: Sequence[Tensor | None], shape: tuple[int, int, int]) -> list[Tensor]:
    """Columns (Q, M, .) of a block's matrix, of the weight and of its bias; zeros where one has no moment."""
    found = next(tensor for tensor in tensors if tensor is not None)
    widths = [shape[2] - (len(tensors) - 1), *[1] * (len(tensors) - 1)]
    return [
        found.new_zeros(*shape[:2], width) if tensor is None else tensor.reshape(*shape[:2], width)
        for tensor, width in zip(tensors, widths, strict=True)
    ]
