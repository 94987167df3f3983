"""Matrices of several shapes in one batch, each in the upper left corner of a larger one that is zero elsewhere.

Zeros beside a matrix and below it are zeros beside and below its polar factor, whose other numbers they do not change:
one call finds the factors of several shapes, where its launches would take longer than work on zeros does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lightning_so.linalg.polar import PolarFactor

#: Number of matrices in a batch, rows and columns.
Size = tuple[int, int, int]
#: What the launches of a call of `polar` take, in multiply-adds: some 25 of 5 us each, where small matrices are
#: multiplied at 8e12 a second. It decides what is joined; whether that is faster is for a device to show.
CALL = 1e9


@dataclass(frozen=True)
class Frames:
    """Batches of matrices that lie in one batch, all of them wide.

    Attributes:
        sizes: Of each batch, in order.
    """

    sizes: tuple[Size, ...]

    @property
    def shape(self) -> Size:
        """Of the batch in which they lie, (B, M, N) with M <= N."""
        return _around([_wide(size) for size in self.sizes])

    def views(self, batch_BMN: Tensor) -> list[Tensor]:
        """The matrices of each batch, in its own shape.

        Args:
            batch_BMN: The batch in which they lie, of the shape above.

        Returns:
            Views; transposed where its matrices are tall.
        """
        found = list[Tensor]()
        parts = batch_BMN.split([count for count, *_ in self.sizes])
        for part, (_, rows, columns) in zip(parts, self.sizes, strict=True):
            found.append((part.mT if rows > columns else part)[:, :rows, :columns])
        return found

    def fill(self, batch_BMN: Tensor, matrices: Iterable[Tensor]) -> Tensor:
        """Put matrices into a batch that is theirs, and zeros around them.

        Args:
            batch_BMN: The batch.
            matrices: Of each batch; each is read before the next is asked for.

        Returns:
            The batch.
        """
        batch_BMN.zero_()
        for view, X in zip(self.views(batch_BMN), matrices, strict=True):
            view.copy_(X)
        return batch_BMN


@cache
def joined(
    sizes: tuple[Size, ...], factor: PolarFactor, dtype: torch.dtype, call: float = CALL
) -> tuple[tuple[int, ...], ...]:
    """Which batches to put into one for their polar factors, so that multiply-adds and launches take least.

    Least of all ways to cut their row, in the order of what one matrix costs.

    Args:
        sizes: Of each batch.
        factor: How polar factors are computed.
        dtype: Of the matrices.
        call: What a call takes, in multiply-adds; 0 leaves all apart that have not the same shape when wide.

    Returns:
        Numbers of the batches of every group, rising.
    """
    wide = [_wide(size) for size in sizes]
    prices = [factor.cost(size[1:], dtype) for size in wide]
    order = sorted(range(len(sizes)), key=lambda number: (prices[number], wide[number][1:], number))
    # Of the first batches in this order: the least that they take, and where their last group begins.
    least = [(0.0, 0)]
    for end in range(1, len(order) + 1):
        found, around = list[tuple[float, int]](), (0, 0, 0)
        for begin in range(end - 1, -1, -1):
            around = _around([around, wide[order[begin]]])
            work = around[0] * factor.cost(around[1:], dtype)
            found.append((least[begin][0] + work + call, begin))
        least.append(min(found))
    groups, end = list[tuple[int, ...]](), len(order)
    while end:
        begin = least[end][1]
        groups.append(tuple(sorted(order[begin:end])))
        end = begin
    return tuple(groups[::-1])


def _wide(size: Size) -> Size:
    """A batch of wide matrices: tall ones are transposed."""
    count, *sides = size
    return count, min(sides), max(sides)


def _around(sizes: Sequence[Size]) -> Size:
    """The batch in which others have room."""
    counts, rows, columns = zip(*sizes, strict=True)
    return sum(counts), max(rows), max(columns)
