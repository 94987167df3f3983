"""Tiles: diagonal blocks of the factor of one side of a matrix, each with a basis of its own.

A side of N entries is cut into equal tiles of at most `cap`; a side longer than `LONG * cap` keeps only its diagonal.
Legend: B matrices of one shape, M rows, N columns, T side of a tile. The *row* side has M entries, the *column* side N.
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_so.linalg import packed

#: A side longer than this many caps (a vocabulary) keeps its diagonal alone and no basis.
LONG = 8
#: What is added to eigenvalues before they whiten, over their mean.
FLOOR = 1e-4


def tiles(side: int, cap: int) -> list[slice]:
    """Cut a side into the fewest tiles of at most `cap` entries, equal to within one; none for a very long side."""
    if side > LONG * cap:
        return []
    count = math.ceil(side / cap)
    edges = [side * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def label(cuts: list[slice] | tuple[slice, ...]) -> str:
    """How a plan names the tiles of a side: their number and the first one's length."""
    return f"{len(cuts)}x{cuts[0].stop}" if cuts else "diagonal"


def default_cap(device: torch.device) -> int:
    """The largest tile where none is asked for: what a refresh costs little of on a device."""
    return 256 if device.type == "cpu" else 1024


def fold(
    factors: list[Tensor], cuts: list[slice], G_BMN: Tensor, weight: float, *, column: bool, keep: float | None = None
) -> None:
    """Fold G G' (or G' G for the column side) into the factors in place: F <- k F + w G G'.

    Args:
        factors: One (B, T, T) tensor a tile, or (B, S) of its triangles, see `packed`; for a side without tiles one
            (B, side) diagonal.
        cuts: The tiles of the side.
        G_BMN: Gradients, shape (B, M, N).
        weight: w, the weight of the newest.
        column: Whether the side is the columns.
        keep: k, what stays of the old; None takes 1 - w.
    """
    keep = 1 - weight if keep is None else keep
    G = G_BMN.mT if column else G_BMN
    if not cuts:
        factors[0].mul_(keep).add_(G.square().sum(-1), alpha=weight)
        return
    for F, cut in zip(factors, cuts, strict=True):
        part = G[:, cut]
        if F.ndim == 2:
            packed.fold(F, part, keep, weight)
        else:
            F.baddbmm_(part, part.mT, beta=keep, alpha=weight)


def whole(F: Tensor, cut: slice) -> Tensor:
    """The factors of a tile, (B, T, T): themselves, or what triangles (B, S) are of, see `packed`."""
    return packed.dense(F, cut.stop - cut.start) if F.ndim == 2 else F


class Sided(Protocol):
    """One side of every matrix of a stack: its factors, see `fold`, and its tiles."""

    factors: list[Tensor]
    cuts: list[slice]


def of_row(sides: Iterable[Sided], row: int) -> list[Tensor]:
    """The factors of one matrix that have tiles, (T, T) each."""
    pairs = [pair for side in sides if side.cuts for pair in zip(side.factors, side.cuts, strict=True)]
    return [whole(F[row : row + 1], cut)[0] for F, cut in pairs]


def factors(cuts: list[slice], side: int, count: int, *, triangles: bool, **place: Any) -> list[Tensor]:
    """Factors of zeros of one side of `count` matrices, as `fold` takes them.

    Args:
        cuts: The tiles of the side.
        side: Its length.
        count: B.
        triangles: Whether triangles are kept of them.
        place: Their dtype and device.

    Returns:
        The factors.
    """
    widths = [cut.stop - cut.start for cut in cuts]
    shapes = [packed.shape(w, triangles=triangles) for w in widths] or [(side,)]
    return [torch.zeros(count, *shape, **place) for shape in shapes]


def turn(bases: list[Tensor], cuts: list[slice], X_BMN: Tensor, *, column: bool, leave: bool) -> Tensor:
    """Rotate one side: Q' X into the basis, Q X out of it (X Q and X Q' for the column side), tile by tile.

    Args:
        bases: One (B, T, T) tensor a tile; empty for a side without a basis.
        cuts: The tiles of the side.
        X_BMN: What to rotate, shape (B, M, N).
        column: Whether the side is the columns.
        leave: Out of the basis instead of into it.

    Returns:
        The rotated tensor, shape (B, M, N); X itself for a side without a basis.
    """
    if not cuts:
        return X_BMN
    bases = [Q.to(X_BMN.dtype) for Q in bases]
    if column:
        parts = [torch.bmm(X_BMN[:, :, cut], Q.mT if leave else Q) for Q, cut in zip(bases, cuts, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    parts = [torch.bmm(Q if leave else Q.mT, X_BMN[:, cut]) for Q, cut in zip(bases, cuts, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def eigenvalues(factors: list[Tensor], bases: list[Tensor], cuts: list[slice]) -> Tensor:
    """Estimates diag(Q' F Q) of a side's eigenvalues, shape (B, side); the diagonal itself without a basis."""
    if not bases:
        return factors[0].clamp_min(0)
    of_tiles = [(whole(F, cut), Q.to(F.dtype)) for F, Q, cut in zip(factors, bases, cuts, strict=True)]
    return torch.cat([(Q * (F @ Q)).sum(1).clamp_min(0) for F, Q in of_tiles], dim=1)


def whitened(factors: list[Tensor], bases: list[Tensor], cuts: list[slice], X_BMN: Tensor, *, column: bool) -> Tensor:
    """X in the basis of one side, over the roots of that side's eigenvalues r relative to their mean.

        X Q diag((r + 1e-4 mean r) / mean r)^(-1/2)    (diag(...)^(-1/2) Q' X for the row side)

    Args:
        factors: The side's, see `fold`; of zeros nothing is divided by them.
        bases: One (B, T, T) tensor a tile; empty for a side without a basis.
        cuts: The tiles of the side.
        X_BMN: What to whiten, shape (B, M, N).
        column: Whether the side is the columns.

    Returns:
        The whitened tensor, shape (B, M, N).
    """
    r = eigenvalues(factors, bases, cuts)
    mean = r.mean(1, keepdim=True)
    root = torch.where(mean > 0, mean / (r + FLOOR * mean), 1.0).sqrt()
    return turn(bases, cuts, X_BMN, column=column, leave=False) * root.unsqueeze(1 if column else 2)
