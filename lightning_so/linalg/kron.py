"""One side of a Kronecker product of factors, tile by tile: what is observed of it, and what was solved.

Legend: B blocks of a stack, Q groups, T side of a tile, M rows and N columns of a matrix.
"""

from dataclasses import dataclass, field

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

    @property
    def widths(self) -> list[int]:
        """The side of each tile; none for a diagonal."""
        return [cut.stop - cut.start for cut in self.cuts]


def shape(length: int, groups: int, cap: int, *, diagonal: bool) -> Shape:
    """The shape of a side: tiles of at most `cap` entries; a diagonal where asked, or for a very long side."""
    return Shape(length, groups, () if diagonal else tuple(tiles.tiles(length, cap)))


@dataclass
class Side:
    """Second moments of one side of every block of a stack, in the order of its tiles; inert but for in-place folding.

    Attributes:
        shape: What it looks like.
        device: Where rows are observed.
        factors: Moving averages, (B, Q, T, T) a tile or (B, Q, length). At the owner, saved.
        windows: Sums since the last fold, by block one (Q, T, T) a tile or one (Q, length). They are as large as the
            factors, and on every rank: so they are there only from a block's first rows until they are folded or
            forgotten. Summed over ranks, not saved.
    """

    shape: Shape
    device: torch.device
    factors: list[Tensor]
    windows: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the factors."""
        return self.factors[0].dtype

    def add(self, row: int, rows: Tensor, scale: float = 1.0) -> None:
        """Add `scale` times the outer products of rows (Q, P, length), or a diagonal (length,), to a block's window."""
        windows = self.window(row)
        if not self.shape.cuts:
            diagonal = rows if rows.ndim == 1 else torch.linalg.vector_norm(rows, dim=1).square()
            windows[0].add_(diagonal.reshape(windows[0].shape), alpha=scale)
            return
        for window, cut in zip(windows, self.shape.cuts, strict=True):
            window.baddbmm_(rows[..., cut].mT, rows[..., cut], alpha=scale)

    def window(self, row: int) -> list[Tensor]:
        """A block's window, of zeros if nothing was added."""
        if row not in self.windows:
            place = {"dtype": self.dtype, "device": self.device}
            self.windows[row] = [torch.zeros(shape, **place) for shape in self.window_shapes]
        return self.windows[row]

    @property
    def window_shapes(self) -> list[torch.Size]:
        """Shapes of a block's window."""
        return [factor.shape[1:] for factor in self.factors]

    def trace(self, row: int) -> Tensor:
        """`tr window` of a block over all tiles and groups; not finite if a row of it is not."""
        return torch.stack([_trace(window) for window in self.window(row)]).sum()

    def fold(self, row: int, keep: Tensor, weight: Tensor) -> None:
        """`F <- keep F + weight window`, whatever is in it where the weight is 0; the window is gone."""
        for factor, window in zip(self.factors, self.window(row), strict=True):
            factor[row].mul_(keep).add_(window.mul_(weight).masked_fill_(weight == 0, 0))
        self.forget(row)

    def forget(self, row: int) -> None:
        """Let go of a block's window."""
        self.windows.pop(row, None)

    def mean(self, row: int) -> Tensor:
        """`tr F / dim F` of a block over all tiles and groups."""
        return torch.stack([_trace(F[row]) for F in self.factors]).sum() / (self.shape.length * self.shape.groups)

    def inverse(self, row: int, weight: Tensor, damping: Tensor) -> Result:
        """Inverses of a block's damped tiles, flattened one after the other."""
        if not self.shape.cuts:
            F = self.factors[0][row] / weight + damping
            return Result(F.reciprocal().flatten(), bool((damping > 0) & damping.isfinite() & F.isfinite().all()))
        return joined([psd.inverse(F[row] / weight, damping.expand(self.shape.groups)) for F in self.factors])

    def eigen(self, row: int, weight: Tensor) -> Result:
        """Eigenvectors of a block's tiles, flattened one after the other, then all eigenvalues (Q, length)."""
        if not self.shape.cuts:
            F = self.factors[0][row] / weight
            return Result(F.flatten(), bool(F.isfinite().all()))
        found = [psd.eigenbasis(F[row] / weight) for F in self.factors]
        values = torch.cat([values for values, _, _ in found], 1)
        ok = all(ok for _, _, ok in found)
        return Result(torch.cat([*(vectors.flatten() for _, vectors, _ in found), values.flatten()]), ok)


def _trace(F: Tensor) -> Tensor:
    """The sum of the traces of (Q, T, T), or of diagonals (Q, length)."""
    return F.sum() if F.ndim == 2 else F.diagonal(dim1=1, dim2=2).sum()


def joined(results: list[Result]) -> Result:
    """Several results as one flat one, which is good if all are."""
    value = torch.cat([result.value.flatten() for result in results])
    return Result(value, all(r.ok for r in results), attempts=max(r.attempts for r in results))


@dataclass
class Tiles:
    """Block-diagonal matrices of one side of every block of a stack: inverses, or bases.

    Attributes:
        shape: What the side looks like.
        tensors: (B, Q, T, T) a tile; one (B, Q, length) for a diagonal; none for the identity. Replicated, saved.
    """

    shape: Shape
    tensors: list[Tensor]

    def left(self, X_BMN: Tensor, rows: list[int] | None, *, transpose: bool = False, square: bool = False) -> Tensor:
        """`S X`, or `S' X`, for every block of a batch on its first side, where groups lie side by side.

        Args:
            X_BMN: The batch.
            rows: Its blocks, None for all.
            transpose: With S' instead of S.
            square: With the elementwise square.

        Returns:
            The product, shape (B, M, N).
        """
        if not self.tensors:
            return X_BMN
        X = X_BMN.unflatten(1, (self.shape.groups, -1))
        solved = self._of(rows, square=square)
        if not self.shape.cuts:
            return (X * solved[0][..., None]).flatten(1, 2)
        parts = [(S.mT if transpose else S) @ X[:, :, cut] for S, cut in zip(solved, self.shape.cuts, strict=True)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)).flatten(1, 2)

    def right(self, X_BMN: Tensor, rows: list[int] | None, *, transpose: bool = False, square: bool = False) -> Tensor:
        """`X S`, or `X S'`, on the second side, which every group of rows has its own of; see `left`."""
        if not self.tensors:
            return X_BMN
        X = X_BMN.unflatten(1, (self.shape.groups, -1))
        solved = self._of(rows, square=square)
        if not self.shape.cuts:
            return (X * solved[0][:, :, None]).flatten(1, 2)
        parts = [X[..., cut] @ (S.mT if transpose else S) for S, cut in zip(solved, self.shape.cuts, strict=True)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 3)).flatten(1, 2)

    def rows(self, row: int, X_QPL: Tensor) -> Tensor:
        """Rows of a block's groups times its matrices, `X S`."""
        return self.right(X_QPL.flatten(0, 1)[None], [row]).view(X_QPL.shape)

    def dense(self, row: int) -> Tensor:
        """A block's matrices with their tiles on the diagonal, (Q, length, length)."""
        eye = torch.eye(self.shape.length).repeat(self.shape.groups, 1, 1)
        return self.rows(row, eye.to(self.tensors[0]) if self.tensors else eye)

    def _of(self, rows: list[int] | None, *, square: bool) -> list[Tensor]:
        found = self.tensors
        if rows is not None and len(rows) == 1:
            found = [tensor[rows[0] : rows[0] + 1] for tensor in found]  # a view: inverses are large
        elif rows is not None:
            found = [tensor[rows] for tensor in found]
        return [tensor.square() for tensor in found] if square else found


def statistics(shape: Shape, count: int, dtype: torch.dtype, device: torch.device, home: torch.device) -> Side:
    """A side of zeros for `count` blocks: windows on the device, factors where they have their home."""
    return Side(shape, device, _zeros(shape, count, dtype, home))


def inverses(shape: Shape, count: int, dtype: torch.dtype, device: torch.device) -> Tiles:
    """Room for the inverses of `count` blocks' sides."""
    return Tiles(shape, _zeros(shape, count, dtype, device))


def bases(shape: Shape, count: int, dtype: torch.dtype, device: torch.device) -> Tiles:
    """Bases of `count` blocks' sides: identities, which a diagonal's stays for ever."""
    found = _zeros(shape, count, dtype, device) if shape.cuts else []
    for Q in found:
        Q.diagonal(dim1=2, dim2=3).fill_(1)
    return Tiles(shape, found)


def _zeros(shape: Shape, count: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    sizes = [(w, w) for w in shape.widths] or [(shape.length,)]
    return [torch.zeros(count, shape.groups, *size, dtype=dtype, device=device) for size in sizes]


def divided(left: Tiles, right: Tiles, X_BMN: Tensor, values_BQMN: Tensor, rows: list[int] | None) -> Tensor:
    """`Q_L [(Q_L' X Q_R) / values] Q_R'`, group by group: an inverse in the bases of both sides."""
    Y = right.right(left.left(X_BMN, rows, transpose=True), rows)
    Y = (Y.unflatten(1, values_BQMN.shape[1:3]) / values_BQMN).flatten(1, 2)
    return right.right(left.left(Y, rows), rows, transpose=True)


def product(left_BQM: Tensor, right_BQN: Tensor) -> Tensor:
    """The eigenvalues `l r'` of a Kronecker product, group by group, (B, Q, M, N)."""
    return left_BQM[..., None] * right_BQN[:, :, None]


def permuted(part_QMN: Tensor, order_QT: Tensor, side: int) -> Tensor:
    """Rows (side 0) or columns (side 1) of every group in a new order."""
    index = order_QT[:, :, None] if side == 0 else order_QT[:, None]
    return part_QMN.gather(1 + side, index.expand(part_QMN.shape))


def fill(tensors: list[Tensor], value: Tensor) -> None:
    """Write a flat value into tensors one after the other, in place."""
    for tensor, part in zip(tensors, value.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def solved_size(shape: Shape) -> int:
    """Numbers of a block's inverses or bases."""
    return shape.groups * sum(w * w for w in shape.widths) if shape.cuts else shape.groups * shape.length


def cost(shape: Shape, rows: int, solve: float) -> float:
    """Modelled cost of building and solving a block's side, in multiply-adds of a matrix product.

    Args:
        shape: The side.
        rows: Rows that build a factor.
        solve: Cost of solving its tiles.

    Returns:
        The cost.
    """
    return shape.groups * sum(rows * w * w for w in shape.widths) + solve + 1e6
