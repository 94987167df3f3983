"""Symmetric matrices as their upper triangles: half the bytes in files and on the wire."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def triangle(tensor: Tensor) -> Tensor:
    """The upper triangles of symmetric matrices (..., T, T), row by row, shape (..., T (T + 1) / 2)."""
    if tensor.is_meta:  # The numbers of a shape without numbers take long to write down.
        return tensor.new_empty(compact_shape(tensor.shape))
    i, j = torch.triu_indices(*tensor.shape[-2:], device=tensor.device)
    return tensor[..., i, j]


def whole(packed: Tensor, side: int) -> Tensor:
    """The symmetric matrices, (..., side, side), of which `triangle` gave `packed`."""
    i, j = torch.triu_indices(side, side, device=packed.device)
    full = packed.new_empty(*packed.shape[:-1], side, side)
    full[..., i, j] = packed
    full[..., j, i] = packed
    return full


def square(tensor: Tensor) -> bool:
    """Whether the last two dimensions are those of a matrix that may be symmetric."""
    return tensor.ndim >= 2 and tensor.shape[-1] == tensor.shape[-2]


def compact(tensor: Tensor) -> Tensor:
    """The triangle of a symmetric matrix, or of each of several; a copy of anything else."""
    return triangle(tensor) if square(tensor) else tensor.clone()


def expanded(packed: Tensor, like: Tensor) -> Tensor:
    """What `compact` gave `packed` of, in the shape of `like`."""
    return whole(packed, like.shape[-1]) if square(like) else packed


def compact_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of `compact` of a tensor of a shape."""
    if len(shape) < 2 or shape[-1] != shape[-2]:
        return tuple(shape)
    return (*shape[:-2], shape[-1] * (shape[-1] + 1) // 2)


def pack(tensors: list[Tensor]) -> Tensor:
    """One flat tensor of all, compact."""
    return torch.cat([compact(x).flatten() for x in tensors])


def unpack(flat: Tensor, into: list[Tensor]) -> None:
    """Write what `pack` gave back, in place."""
    shapes = [compact_shape(x.shape) for x in into]
    for x, shape, part in zip(into, shapes, flat.split([math.prod(shape) for shape in shapes]), strict=True):
        x.copy_(expanded(part.view(shape), x))
