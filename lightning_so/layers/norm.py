"""Scales and shifts of normalisations, unit by unit: each has a 2x2 matrix of its own.

    u = sum_t x^ g,  v = sum_t g;    F_i = E[(u, v)' (u, v)]_i,  x^ the normalised input

The input side is a one, the output side the pair (u, v). x^ is computed anew: it cannot be had from the output where a
scale is zero. Source: Martens and Grosse 2015, arXiv 1503.05671, section 2; ASDL and kfac-jax call it unit-wise.

Legend: D units, N samples, T positions.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_so.layers.registry import Layer, register

LastDim = nn.LayerNorm | nn.RMSNorm
Channels = nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def one(module: nn.Module, x: Tensor) -> Tensor:
    """The input side, (D, 1, 1, 1)."""
    return x.new_ones(units(module), 1, 1, 1)


def pairs(module: nn.Module, g: Tensor, x: Tensor) -> Tensor:
    """The pair (u, v) of every unit and sample, (D, N, 1, 2); u alone without a shift."""
    g = g.to(torch.promote_types(g.dtype, torch.float32))
    u, v = _summed(module, normalised(module, x.to(g.dtype)) * g), _summed(module, g)
    return torch.stack([u, v] if getattr(module, "bias", None) is not None else [u], -1)[:, :, None]


def normalised(module: nn.Module, x: Tensor) -> Tensor:
    """The input without scale and shift."""
    match module:
        case nn.LayerNorm():
            return F.layer_norm(x, module.normalized_shape, eps=module.eps)
        case nn.RMSNorm():
            return F.rms_norm(x, module.normalized_shape, eps=module.eps)
        case nn.GroupNorm():
            return F.group_norm(x, module.num_groups, eps=module.eps)
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            return F.batch_norm(x, None, None, training=True, eps=module.eps)
    raise AssertionError(module)


def _summed(module: nn.Module, x: Tensor) -> Tensor:
    """Sums over the positions of every sample, (D, N)."""
    if isinstance(module, LastDim):
        return x.reshape(1 if x.ndim == 1 else x.shape[0], -1, x.shape[-1]).sum(1).mT
    return x.flatten(2).sum(2).mT if x.ndim > 2 else x.mT


def units(module: nn.Module) -> int:
    """How many units there are."""
    return math.prod(_scale(module))


def refuse(module: nn.Module) -> str | None:
    """Normalisations whose scale is no vector."""
    return None if len(_scale(module)) == 1 else "it normalises several dimensions: its scale is no vector"


def _scale(module: nn.Module) -> tuple[int, ...]:
    """Shape of the scale, of which the module may hold a piece or nothing."""
    match module:
        case nn.LayerNorm() | nn.RMSNorm():
            return tuple(module.normalized_shape)
        case nn.GroupNorm():
            return (module.num_channels,)
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            return (module.num_features,)
    raise AssertionError(f"{type(module).__name__} is no normalisation")


for kind in (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
    sequences = issubclass(kind, LastDim)
    register(kind, Layer(one, pairs, groups=units, input_side=0, joint=True, padded=sequences, refuse=refuse))
