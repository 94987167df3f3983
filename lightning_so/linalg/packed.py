"""Symmetric matrices kept as strips of their upper triangles: a few products fold into them, and no index is needed.

A strip is some rows of the triangle, from the first one's diagonal to the right: at most `STRIPS` of them, so that at
most 9/16 of a matrix is kept. Legend: T side of a matrix, S numbers that are kept of it, K columns.
"""

import math
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from lightning_so.linalg.triangle import square, whole

#: Into how many strips a matrix is cut, and the least rows of one: calls on fewer are all launches.
STRIPS, LEAST = 8, 16


@cache
def strips(side: int) -> tuple[tuple[int, int, int], ...]:
    """Of each strip of a matrix (T, T): its first row, the one after its last, and the first of its numbers."""
    rows, found, at = max(LEAST, -(-side // STRIPS)), [], 0
    for begin in range(0, side, rows):
        end = min(begin + rows, side)
        found.append((begin, end, at))
        at += (end - begin) * (side - begin)
    return tuple(found)


@cache
def size(side: int) -> int:
    """S, how many numbers are kept of a matrix (T, T)."""
    return sum((end - begin) * (side - begin) for begin, end, _ in strips(side))


def shape(side: int, *, triangles: bool) -> tuple[int, ...]:
    """What is kept of a matrix (T, T): all of it, or its strips."""
    return (size(side),) if triangles else (side, side)


def pack(F: Tensor) -> Tensor:
    """The strips of symmetric matrices (..., T, T), shape (..., S); nothing below the strips is read."""
    return torch.cat([F[..., begin:end, begin:].flatten(-2) for begin, end, _ in strips(F.shape[-1])], -1)


def as_kept(F: Tensor, dimensions: int) -> Tensor:
    """Matrices (..., T, T) as tensors of so many dimensions: themselves, or their strips, which have one fewer."""
    return pack(F) if dimensions < F.ndim else F


def dense(packed: Tensor, side: int) -> Tensor:
    """The symmetric matrices (..., T, T) of which `pack` gave (..., S)."""
    F = packed.new_empty(*packed.shape[:-1], side, side)
    for begin, end, strip in _each(packed, side):
        F[..., begin:end, begin:] = strip
        F[..., end:, begin:end] = strip[..., end - begin :].mT
    return F


def fitted(saved: Tensor, like: Tensor) -> Tensor:
    """What a file has of a symmetric matrix, as this run keeps it: whole or in strips.

    Args:
        saved: The matrix (..., T, T), its strips (..., S), or its triangle, see `triangle.triangle`.
        like: What this run keeps.

    Returns:
        The same in the shape of `like`; `saved` itself where it is none of them.
    """
    if saved.shape == like.shape:
        return saved
    kept, full = saved.shape[-1], saved
    if not square(saved):
        side = like.shape[-1] if square(like) else math.isqrt(2 * kept)
        if kept not in (size(side), side * (side + 1) // 2):
            return saved
        full = dense(saved, side) if kept == size(side) else whole(saved, side)
    found = as_kept(full, like.ndim)
    return found if found.shape == like.shape else saved


def fold(packed: Tensor, X: Tensor, keep: float, weight: float) -> None:
    """`F <- keep F + weight X X'` for matrices X (B, T, K) in place: 9/16 of the multiply-adds of whole products.

    Args:
        packed: F, shape (B, S).
        X: What is folded in.
        keep: What stays of F.
        weight: What of the product is added.
    """
    for begin, end, strip in _each(packed, X.shape[1]):
        strip.baddbmm_(X[:, begin:end], X[:, begin:].mT, beta=keep, alpha=weight)


def _each(packed: Tensor, side: int) -> Iterator[tuple[int, int, Tensor]]:
    """Of each strip, its first row, the one after its last, and a view of it."""
    for begin, end, at in strips(side):
        part = packed[..., at : at + (end - begin) * (side - begin)]
        yield begin, end, part.unflatten(-1, (end - begin, side - begin))
