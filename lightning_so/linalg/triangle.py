"""Symmetric matrices as their upper triangles: half the bytes in files and on the wire."""

import torch
from torch import Tensor


def triangle(tensor: Tensor) -> Tensor:
    """The upper triangles of symmetric matrices (..., T, T), row by row, shape (..., T (T + 1) / 2)."""
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


def pack(tensors: list[Tensor], symmetric: list[bool]) -> Tensor:
    """One flat tensor of all, the symmetric ones as triangles."""
    return torch.cat([(triangle(x) if s else x).flatten() for x, s in zip(tensors, symmetric, strict=True)])


def unpack(flat: Tensor, into: list[Tensor], symmetric: list[bool]) -> None:
    """Write what `pack` gave back, in place."""
    at = 0
    for x, s in zip(into, symmetric, strict=True):
        size = triangle_size(x) if s else x.numel()
        part = flat[at : at + size]
        x.copy_(whole(part.view(*x.shape[:-2], -1), x.shape[-1]) if s else part.view(x.shape))
        at += size


def triangle_size(tensor: Tensor) -> int:
    """Numbers that `triangle` gives."""
    side = tensor.shape[-1]
    return tensor.numel() // side // side * (side * (side + 1) // 2)
