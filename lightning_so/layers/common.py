"""Linear, convolutions and Embedding as rows. Source: Martens and Grosse 2015, Grosse and Martens 2016 (KFC).

Legend: Q groups, N samples, T positions, I inputs of a group, O outputs of a group.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_so.layers.registry import Layer, register


def linear_rows(module: nn.Module, x: Tensor) -> Tensor:
    """(N, ..., D) -> (1, N, T, D); a single vector is one sample."""
    if x.ndim == 1:
        x = x[None]
    return x.reshape(1, x.shape[0], -1, x.shape[-1])


def patches(module: nn.Module, x: Tensor) -> Tensor:
    """Patches of a two-dimensional convolution in its weight's own order, (Q, N, T, C/Q * kh * kw)."""
    assert isinstance(module, nn.Conv2d)
    if x.ndim == 3:
        x = x[None]
    if module.padding_mode == "zeros":
        sides = _same(module) if module.padding == "same" else _even(module)
        x = F.pad(x, sides)
    else:
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
    columns = F.unfold(x, module.kernel_size, module.dilation, stride=module.stride)
    return columns.unflatten(1, (module.groups, -1)).permute(1, 0, 3, 2)


def _even(module: nn.Conv2d) -> list[int]:
    if module.padding == "valid":
        return [0, 0, 0, 0]
    height, width = (int(p) for p in module.padding)
    return [width, width, height, height]


def _same(module: nn.Conv2d) -> list[int]:
    """Zero padding of 'same': the odd one goes to the end, as torch does it."""
    sides = []
    for kernel, dilation in zip(reversed(module.kernel_size), reversed(module.dilation), strict=True):
        total = dilation * (kernel - 1)
        sides += [total // 2, total - total // 2]
    return sides


def pixels(module: nn.Module, g: Tensor) -> Tensor:
    """Gradients of a convolution's output pixels, (Q, N, T, O/Q)."""
    assert isinstance(module, nn.Conv2d)
    if g.ndim == 3:
        g = g[None]
    return g.flatten(2).unflatten(1, (module.groups, -1)).permute(1, 0, 3, 2)


def tokens(module: nn.Module, x: Tensor) -> Tensor:
    """Indices of an Embedding, (N, T); padding becomes -1, which chooses nothing."""
    assert isinstance(module, nn.Embedding)
    indices = x.reshape(x.shape[0], -1) if x.ndim else x.reshape(1, 1)
    if module.padding_idx is None:
        return indices
    return torch.where(indices == module.padding_idx, -1, indices)


def embedding_rows(module: nn.Module, g: Tensor) -> Tensor:
    """Gradients of embedded tokens, (1, N, T, D)."""
    return g.reshape(1, g.shape[0], -1, g.shape[-1]) if g.ndim > 1 else g.reshape(1, 1, 1, -1)


def refuse_embedding(module: nn.Module) -> str | None:
    """Embeddings whose gradient is not that of the lookup alone."""
    assert isinstance(module, nn.Embedding)
    if module.sparse:
        return "a sparse gradient, which no matrix method can use"
    if module.scale_grad_by_freq:
        return "scale_grad_by_freq changes its gradient after the backward pass"
    if module.max_norm is not None:
        return "max_norm changes its weight in the forward pass"
    return None


def conv_groups(module: nn.Module) -> int:
    """Groups of a convolution: each has weights and inputs of its own."""
    assert isinstance(module, nn.Conv2d)
    return module.groups


register(nn.Linear, Layer(linear_rows, linear_rows))
register(nn.Conv2d, Layer(patches, pixels, groups=conv_groups, single=lambda x: x.ndim < 4))
register(
    nn.Embedding,
    Layer(tokens, embedding_rows, input_side=0, indices=True, single=lambda x: x.ndim < 1, refuse=refuse_embedding),
)
