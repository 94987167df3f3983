"""The whole parameter vector: this rank's numbers of all parameters, and sums over all ranks' numbers."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from lightning_so.comm import Access, Local, Pieces, Sharded
from lightning_so.linalg.vectors import Piece, Space


def space_of(named: Iterable[tuple[str, Tensor]], access: Access, comm: Local) -> Space:
    """The space of some parameters; a collective where ranks hold pieces.

    Args:
        named: Names and parameters, the same on every rank.
        access: Where their numbers are.
        comm: How ranks talk.

    Returns:
        The space, in float32, or float64 where all parameters are.
    """
    found, pieces = list(named), []
    for name, param in found:
        first, last = access.span(param)
        pieces.append(Piece(name, first, last - first, access.shape(param).numel()))
    weights = [access.weight(param) for _, param in found]
    double = bool(weights) and all(weight.dtype is torch.float64 for weight in weights)
    dtype, device = torch.float64 if double else torch.float32, weights[0].device if weights else "cpu"
    if not access.sharded:  # What every rank has is no sum.
        return Space(tuple(pieces), dtype=dtype, device=device)
    assert isinstance(comm, Sharded)
    spans = comm.spans([(piece.first, piece.first + piece.count) for piece in pieces])
    # Of ranks that have the same numbers, one counts them.
    counted = (
        replace(piece, counted=Pieces(of, 0).gives(comm.rank) > 0) for piece, of in zip(pieces, spans, strict=True)
    )

    def total(numbers: Tensor) -> Tensor:
        comm.sum(numbers)
        return numbers

    return Space(tuple(counted), dtype=dtype, device=device, total=total)
