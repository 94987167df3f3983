"""One side of a Kronecker product of factors: windows, moving averages, inverses or eigenbases, tile by tile.

Legend: B blocks of a stack, Q groups, T side of a tile, N other side.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.linalg import psd, tiles
from lightning_so.linalg.result import Result


@dataclass(frozen=True)
class Shape:
    """What a side looks like.

    Attributes:
        length: Entries of a group's side; of the whole side where it is a diagonal.
        groups: Equal matrices side by side.
        cuts: The tiles of a group; none for a diagonal.
    """

    length: int
    groups: int
    cuts: tuple[slice, ...]


def shape(length: int, groups: int, cap: int, *, diagonal: bool) -> Shape:
    """The shape of a side: tiles of at most `cap` entries; a diagonal where asked, or for a very long side."""
    return Shape(length, groups, () if diagonal else tuple(tiles.tiles(length, cap)))


@dataclass
class Side:
    """Tensors of one side of every block of a stack, in the order of its tiles; inert but for in-place folding.

    Attributes:
        shape: What it looks like.
        exact: Whether eigenbases and eigenvalues are kept instead of inverses.
        windows: Sums since the last fold, (B, Q, T, T) a tile or (B, Q, length). Summed over ranks, not saved.
        factors: Moving averages, same shapes. At the owner, saved.
        solved: Inverses, same shapes; or eigenvectors (B, Q, T, T) and eigenvalues (B, Q, T) in turn. Replicated,
            saved.
    """

    shape: Shape
    exact: bool
    windows: list[Tensor]
    factors: list[Tensor]
    solved: list[Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the factors."""
        return self.factors[0].dtype

    def add(self, row: int, rows: Tensor, scale: float = 1.0) -> None:
        """Add `scale` times the outer products of rows (Q, P, length), or a diagonal (length,), to a block's window."""
        if not self.shape.cuts:
            diagonal = rows if rows.ndim == 1 else torch.linalg.vector_norm(rows, dim=1).square()
            self.windows[0][row].add_(diagonal.reshape(self.windows[0][row].shape), alpha=scale)
            return
        for window, cut in zip(self.windows, self.shape.cuts, strict=True):
            window[row].baddbmm_(rows[..., cut].mT, rows[..., cut], alpha=scale)

    def fold(self, row: int, keep: Tensor, weight: Tensor) -> None:
        """`F <- keep F + weight window`; the window is spent."""
        for factor, window in zip(self.factors, self.windows, strict=True):
            factor[row].mul_(keep).add_(window[row] * weight)
            window[row].zero_()

    def mean(self, row: int) -> Tensor:
        """`tr F / dim F` of a block over all tiles and groups."""
        traces = [F[row].sum() if F.ndim == 3 else F[row].diagonal(dim1=1, dim2=2).sum() for F in self.factors]
        return torch.stack(traces).sum() / (self.shape.length * self.shape.groups)

    def inverse(self, row: int, weight: Tensor, damping: Tensor) -> Result:
        """Inverses of a block's damped tiles, flattened one after the other."""
        if not self.shape.cuts:
            F = self.factors[0][row] / weight + damping
            return Result(F.reciprocal().flatten(), bool((damping > 0) & damping.isfinite() & F.isfinite().all()))
        results = [psd.inverse(F[row] / weight, damping.expand(self.shape.groups)) for F in self.factors]
        return _joined(results)

    def eigen(self, row: int, weight: Tensor) -> Result:
        """Eigenvectors and eigenvalues of a block's tiles, flattened in turn; a diagonal has ones for vectors."""
        if not self.shape.cuts:
            F = self.factors[0][row] / weight
            return Result(torch.cat([torch.ones_like(F).flatten(), F.flatten()]), bool(F.isfinite().all()))
        results = []
        for F in self.factors:
            values, vectors, ok = psd.eigenbasis(F[row] / weight)
            results.append(Result(torch.cat([vectors.flatten(), values.flatten()]), ok))
        return _joined(results)

    def left(self, X_BMN: Tensor, rows: list[int] | None) -> Tensor:
        """`F^-1 X` for every block of a batch, on its first side; groups lie side by side on it."""
        return self._turn(X_BMN, self._of(self.solved, rows))

    def right(self, X_BMN: Tensor, rows: list[int] | None) -> Tensor:
        """`X F^-1` on the second side, which every group of rows shares or has its own of."""
        return self._turn_columns(X_BMN, self._of(self.solved, rows))

    def _of(self, tensors: list[Tensor], rows: list[int] | None) -> list[Tensor]:
        if rows is not None and len(rows) == 1:
            return [tensor[rows[0] : rows[0] + 1] for tensor in tensors]  # a view: inverses are large
        return tensors if rows is None else [tensor[rows] for tensor in tensors]

    def _turn(self, X_BMN: Tensor, solved: list[Tensor], *, transpose: bool = False) -> Tensor:
        X = X_BMN.unflatten(1, (self.shape.groups, -1))
        if not self.shape.cuts:
            return (X * solved[0][..., None]).flatten(1, 2)
        parts = [(Q.mT if transpose else Q) @ X[:, :, cut] for Q, cut in zip(solved, self.shape.cuts, strict=True)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)).flatten(1, 2)

    def _turn_columns(self, X_BMN: Tensor, solved: list[Tensor], *, transpose: bool = False) -> Tensor:
        X = X_BMN.unflatten(1, (self.shape.groups, -1))
        if not self.shape.cuts:
            return (X * solved[0][:, :, None]).flatten(1, 2)
        parts = [X[..., cut] @ (Q.mT if transpose else Q) for Q, cut in zip(solved, self.shape.cuts, strict=True)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 3)).flatten(1, 2)

    def basis(self, rows: list[int] | None) -> tuple[list[Tensor], Tensor]:
        """Eigenvectors of the tiles, and all eigenvalues, (B, Q, length)."""
        solved = self._of(self.solved, rows)
        return solved[::2], torch.cat(solved[1::2], 2)


def _joined(results: list[Result]) -> Result:
    value = torch.cat([result.value.flatten() for result in results])
    return Result(value, all(r.ok for r in results), attempts=max(r.attempts for r in results))


def side(shape: Shape, count: int, *, exact: bool, dtype: torch.dtype, device: torch.device) -> Side:
    """A side of zeros for `count` blocks."""

    def zeros(*sizes: int) -> Tensor:
        return torch.zeros(count, shape.groups, *sizes, dtype=dtype, device=device)

    widths = [cut.stop - cut.start for cut in shape.cuts]
    squares = [[zeros(w, w) for w in widths] or [zeros(shape.length)] for _ in range(2)]
    solved = []
    for w in widths or [0]:
        solved.append(zeros(w, w) if w else zeros(shape.length))
        if exact:
            solved.append(zeros(w or shape.length))
    return Side(shape, exact, squares[0], squares[1], solved)


def exact(left: Side, right: Side, X_BMN: Tensor, damping_B: Tensor, rows: list[int] | None) -> Tensor:
    """`(L x R + d I)^-1 X` in the eigenbases of both sides: `Q_L [(Q_L' X Q_R) / (l r' + d)] Q_R'`."""
    (QL, l_BQM), (QR, r_BQN) = left.basis(rows), right.basis(rows)
    Y = right._turn_columns(left._turn(X_BMN, QL, transpose=bool(left.shape.cuts)), QR)
    groups = max(left.shape.groups, right.shape.groups)
    values = l_BQM[..., None] * r_BQN[:, :, None] + damping_B[:, None, None, None]
    Y = (Y.unflatten(1, (groups, -1)) / values).flatten(1, 2)
    return right._turn_columns(left._turn(Y, QL), QR, transpose=bool(right.shape.cuts))


def solved_size(shape: Shape, *, exact: bool) -> int:
    """Numbers of a block's solved side."""
    widths = [cut.stop - cut.start for cut in shape.cuts]
    squares = sum(w * w for w in widths) if widths else shape.length
    return shape.groups * (squares + (shape.length if exact else 0))


def cost(shape: Shape, rows: int, *, exact: bool) -> float:
    """Modelled cost of building and solving a block's side, in multiply-adds of a matrix product."""
    widths = [cut.stop - cut.start for cut in shape.cuts]
    solve = sum((25.0 * w**3 if exact else psd.inverse_cost(w)) + rows * w * w for w in widths)
    return shape.groups * solve + 1e6
