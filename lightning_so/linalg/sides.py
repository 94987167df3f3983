"""One side of a Kronecker product of factors: what is observed of it, and what is solved of several at once.

Legend: B blocks of a stack, k blocks of one shape from any stacks, Q groups, T side of a tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_so.linalg import packed, psd
from lightning_so.linalg.kron import Shape, whole, zeros
from lightning_so.linalg.result import Solved
from lightning_so.linalg.rows import put, some, together
from lightning_so.linalg.strips import add_products, mirror
from lightning_so.linalg.unseen import maybe


@dataclass
class Side:
    """Second moments of one side of every block of a stack, in the order of its tiles; inert but for in-place folding.

    Attributes:
        shape: What it looks like.
        device: Where rows are observed.
        factors: Moving averages, (B, Q, T, T) a tile, (B, Q, S) of its triangles, see `packed`, or (B, Q, length). At
            the owner, saved.
        windows: Sums since the last fold, by block one (Q, T, T) a tile or one (Q, length). They are as large as whole
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
            diagonal = rows if rows.ndim == 1 else rows.square().sum(1)
            windows[0].add_(diagonal.reshape(windows[0].shape), alpha=scale)
            return
        for window, cut in zip(windows, self.shape.cuts, strict=True):
            add_products(window, rows[..., cut], scale)

    def window(self, row: int) -> list[Tensor]:
        """A block's window, of zeros if nothing was added; what `strips` leaves out is in `gathered` alone."""
        if row not in self.windows:
            place = {"dtype": self.dtype, "device": self.device}
            self.windows[row] = [torch.zeros(shape, **place) for shape in self.window_shapes]
        return self.windows[row]

    def of(self, row: int) -> list[Tensor]:
        """A block's factors, (Q, T, T) a tile or (Q, length)."""
        return whole(self.shape, [F[row] for F in self.factors])

    @property
    def window_shapes(self) -> list[torch.Size]:
        """Shapes of a block's window."""
        sizes = [(width, width) for width in self.shape.widths] or [(self.shape.length,)]
        return [torch.Size([self.shape.groups, *size]) for size in sizes]

    def gathered(self, rows: list[int]) -> list[Tensor]:
        """The windows of blocks, (k, Q, T, T) a tile or one (k, Q, length); of one block the window itself."""
        windows = [self.window(row) for row in rows]
        found = [tile[0][None] if len(tile) == 1 else torch.stack(tile) for tile in zip(*windows, strict=True)]
        for tile in found if self.shape.cuts else ():
            mirror(tile)
        return found

    def fold(self, rows: list[int], windows: list[Tensor], keep_k: Tensor, weight_k: Tensor, spoilt_k: Tensor) -> None:
        """`F <- keep F + weight window`.

        Args:
            rows: The blocks, rising.
            windows: What `gathered` gave of them; changed.
            keep_k: What stays of their factors.
            weight_k: What of the windows is added.
            spoilt_k: Whose windows are not finite: they are of zeros afterwards.
        """
        for factor, dense in zip(self.factors, windows, strict=True):
            keep, weight, spoilt = (x.view(-1, *[1] * (factor.ndim - 1)) for x in (keep_k, weight_k, spoilt_k))
            window = packed.as_kept(dense, factor.ndim)
            if maybe(spoilt_k):
                window.masked_fill_(spoilt, 0)
            part = some(factor, rows).mul_(keep).addcmul_(window, weight)
            if not together(rows):
                put(factor, rows, part)

    def forget(self, rows: list[int]) -> None:
        """Let go of the windows of blocks."""
        for row in rows:
            self.windows.pop(row, None)


@dataclass(frozen=True)
class Gathered:
    """One side of k blocks of one shape, from whatever stacks, in one batch.

    Attributes:
        shape: What the side looks like.
        factors: Copies, (k, Q, T, T) a tile or (k, Q, length).
    """

    shape: Shape
    factors: list[Tensor]

    @classmethod
    def of(cls, sides: Sequence[tuple[Side, int]]) -> "Gathered":
        """Sides and the rows of the blocks in their stacks."""
        return cls(sides[0][0].shape, [stacked(sides, tile) for tile in range(len(sides[0][0].factors))])

    def mean(self) -> Tensor:
        """`tr F / dim F` over all tiles and groups, shape (k,)."""
        return traces(self.factors) / (self.shape.length * self.shape.groups)

    def over(self, weight_k: Tensor) -> "Gathered":
        """The same, all factors divided by a number for each block, in place."""
        for F in self.factors:
            F.div_(weight_k.view(-1, *[1] * (F.ndim - 1)))
        return self

    def inverses(self, damping_k: Tensor, *, sturdy: bool = False) -> list[Tensor]:
        """Inverses of damped tiles. What is not good has a trace that is not positive and finite.

        Args:
            damping_k: What is added to the diagonals, in place, shape (k,): if it is finite, so are these.
            sturdy: Whether to climb the ladder, for which the host waits; then the blocks are good or bad together.

        Returns:
            The inverses, (k, Q, T, T) a tile or (k, Q, length).
        """
        if not self.shape.cuts:
            return [self.factors[0].add_(damping_k[:, None, None]).reciprocal_()]
        if sturdy:
            each = damping_k.repeat_interleave(self.shape.groups)
            found = [psd.inverse(F.flatten(0, 1), each) for F in self.factors]
            values = [one.value if one.ok else one.value.new_full(one.value.shape, torch.nan) for one in found]
        else:
            for F in self.factors:
                F.diagonal(dim1=2, dim2=3).add_(damping_k[:, None, None])
            values = [psd.inverted(F.flatten(0, 1)) for F in self.factors]
        return [value.view(F.shape) for value, F in zip(values, self.factors, strict=True)]

    def eigen(self) -> Solved:
        """Eigenvectors of the tiles, flattened one after the other, then all eigenvalues, (Q, length)."""
        if not self.shape.cuts:
            F = self.factors[0].flatten(1)
            return Solved(F, F.abs().amax(1) < torch.inf)
        count = len(self.factors[0])
        found = [psd.eigenbasis(F.flatten(0, 1)) for F in self.factors]
        values = torch.cat([values.view(count, self.shape.groups, -1) for values, _, _ in found], 2)
        vectors = [vectors.reshape(count, -1) for _, vectors, _ in found]
        return joined([*vectors, values], [good.view(count, -1).all(1) for _, _, good in found])


def stacked(sides: Sequence[tuple[Side, int]], tile: int) -> Tensor:
    """Copies of one tile of sides, and the rows of the blocks in their stacks, (k, Q, T, T) or (k, Q, length)."""
    F, widths = torch.stack([side.factors[tile][row] for side, row in sides]), sides[0][0].shape.widths
    return packed.dense(F, widths[tile]) if widths and F.ndim == 3 else F


def means(sides: Sequence[tuple[Side, int]]) -> Tensor:
    """`tr F / dim F` of sides, and the rows of the blocks in their stacks, over all tiles and groups, shape (k,)."""
    shape = sides[0][0].shape
    found = [[F if F.ndim == 2 else F.diagonal(dim1=1, dim2=2) for F in side.of(row)] for side, row in sides]
    return traces([torch.stack(tile) for tile in zip(*found, strict=True)]) / (shape.length * shape.groups)


def traces(factors: Sequence[Tensor]) -> Tensor:
    """The traces of a side of k blocks over all tiles and groups, shape (k,): of factors, or of windows."""
    found = [(F if F.ndim == 3 else F.diagonal(dim1=2, dim2=3)).sum((1, 2)) for F in factors]
    return found[0] if len(found) == 1 else torch.stack(found).sum(0)


def joined(parts: Sequence[Tensor], flags: Sequence[Tensor]) -> Solved:
    """Parts of solutions of the same blocks, (k, ...), as flat ones, which are good where all flags say so, (k,)."""
    good = flags[0] if len(flags) == 1 else torch.stack(list(flags)).all(0)
    return Solved(torch.cat([part.flatten(1) for part in parts], 1), good)


def positive(numbers: Sequence[Tensor]) -> Tensor:
    """Of which blocks all numbers, (k,) each, are positive and finite."""
    found = torch.stack(list(numbers))
    return ((found > 0) & (found < torch.inf)).all(0)


def statistics(
    shape: Shape, count: int, dtype: torch.dtype, device: torch.device, home: torch.device, *, triangles: bool = False
) -> Side:
    """A side of zeros for `count` blocks: windows on the device, factors, or triangles of them, at their home."""
    return Side(shape, device, zeros(shape, count, dtype, home, triangles=triangles))
