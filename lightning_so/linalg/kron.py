"""One side of a Kronecker product of factors, tile by tile: what it looks like, and what was solved of it.

Legend: B blocks of a stack, Q groups, T side of a tile, M rows and N columns of a matrix.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_so.linalg import packed, tiles


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
    cuts: tuple[slice, ...] = field(hash=False)  # Python has no hash of slices before 3.12.

    @property
    def widths(self) -> list[int]:
        """The side of each tile; none for a diagonal."""
        return [cut.stop - cut.start for cut in self.cuts]


def shape(length: int, groups: int, cap: int, *, diagonal: bool) -> Shape:
    """The shape of a side: tiles of at most `cap` entries; a diagonal where asked, or for a very long side."""
    return Shape(length, groups, () if diagonal else tuple(tiles.tiles(length, cap)))


@dataclass
class Tiles:
    """Block-diagonal matrices of one side of every block of a stack: inverses, or bases.

    Attributes:
        shape: What the side looks like.
        tensors: (B, Q, T, T) a tile, in any precision, or (B, Q, S) of its triangles, see `packed`; one (B, Q, length)
            for a diagonal; none for the identity. Replicated, saved.
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
        X, solved = X_BMN.unflatten(1, (self.shape.groups, -1)), self._of(rows, X_BMN.dtype, square=square)
        if not self.shape.cuts:
            return (X * solved[0][..., None]).view(X_BMN.shape)
        X, solved = X.flatten(0, 1), [S.flatten(0, 1) for S in solved]
        parts = [torch.bmm(S.mT if transpose else S, X[:, cut]) for S, cut in zip(solved, self.shape.cuts, strict=True)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).view(X_BMN.shape)

    def right(self, X_BMN: Tensor, rows: list[int] | None, *, transpose: bool = False, square: bool = False) -> Tensor:
        """`X S`, or `X S'`, on the second side, which every group of rows has its own of; see `left`."""
        if not self.tensors:
            return X_BMN
        X, solved = X_BMN.unflatten(1, (self.shape.groups, -1)), self._of(rows, X_BMN.dtype, square=square)
        if not self.shape.cuts:
            return (X * solved[0][:, :, None]).view(X_BMN.shape)
        X, solved = X.flatten(0, 1), [S.flatten(0, 1) for S in solved]
        parts = [
            torch.bmm(X[..., cut], S.mT if transpose else S) for S, cut in zip(solved, self.shape.cuts, strict=True)
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)).view(X_BMN.shape)

    def rows(self, row: int, X_QPL: Tensor) -> Tensor:
        """Rows of a block's groups times its matrices, `X S`."""
        return self.right(X_QPL.flatten(0, 1)[None], [row]).view(X_QPL.shape)

    def dense(self, row: int) -> Tensor:
        """A block's matrices with their tiles on the diagonal, (Q, length, length)."""
        eye = torch.eye(self.shape.length).repeat(self.shape.groups, 1, 1)
        return self.rows(row, eye.to(self.tensors[0]) if self.tensors else eye)

    def _of(self, rows: list[int] | None, dtype: torch.dtype, *, square: bool) -> list[Tensor]:
        found = self.tensors
        if rows is not None and len(rows) == 1:
            found = [tensor[rows[0] : rows[0] + 1] for tensor in found]  # a view: inverses are large
        elif rows is not None:
            found = [tensor[rows] for tensor in found]
        found = [tensor.to(dtype) for tensor in whole(self.shape, found)]
        return [tensor.square() for tensor in found] if square else found


def whole(shape: Shape, kept: list[Tensor]) -> list[Tensor]:
    """Tiles (..., Q, T, T): themselves, or what triangles (..., Q, S) are of; a diagonal is itself."""
    if not shape.cuts or kept[-1].shape[-2:] == (shape.widths[-1],) * 2:  # The last tile is the widest.
        return kept
    return [packed.dense(F, width) for F, width in zip(kept, shape.widths, strict=True)]


def inverses(shape: Shape, count: int, dtype: torch.dtype, device: torch.device, *, triangles: bool = False) -> Tiles:
    """Room for the inverses of `count` blocks' sides, or for triangles of them."""
    return Tiles(shape, zeros(shape, count, dtype, device, triangles=triangles))


def bases(shape: Shape, count: int, dtype: torch.dtype, device: torch.device) -> Tiles:
    """Bases of `count` blocks' sides: identities, which a diagonal's stays for ever."""
    found = zeros(shape, count, dtype, device) if shape.cuts else []
    for Q in found:
        Q.diagonal(dim1=2, dim2=3).fill_(1)
    return Tiles(shape, found)


def zeros(
    shape: Shape, count: int, dtype: torch.dtype, device: torch.device, *, triangles: bool = False
) -> list[Tensor]:
    """Room for `count` blocks' tiles, perhaps for triangles of them, or diagonals."""
    sizes = [packed.shape(w, triangles=triangles) for w in shape.widths] or [(shape.length,)]
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


def solved_size(shape: Shape, *, triangles: bool = False) -> int:
    """Numbers of a block's inverses or bases, or of triangles of them."""
    sizes = [packed.shape(w, triangles=triangles) for w in shape.widths] or [(shape.length,)]
    return shape.groups * sum(map(math.prod, sizes))


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
