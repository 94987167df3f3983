"""Linear, Conv1D and Embedding as rows, (1, N, T, D): samples, positions, features. Source: Martens and Grosse 2015."""

import torch
from torch import Tensor, nn

from lightning_so.layers.registry import Layer, register


def linear_rows(module: nn.Module, x: Tensor) -> Tensor:
    """(N, ..., D) -> (1, N, T, D); a single vector is one sample."""
    if x.ndim == 1:
        x = x[None]
    return x.reshape(1, x.shape[0], -1, x.shape[-1])


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


register(nn.Linear, Layer(linear_rows, linear_rows, padded=True))
# Hugging Face's linear layer, `y = x W + b`.
register("transformers.pytorch_utils.Conv1D", Layer(linear_rows, linear_rows, input_side=0, padded=True, bias=None))
register(
    nn.Embedding,
    Layer(tokens, embedding_rows, input_side=0, indices=True, single=lambda x: x.ndim < 1, refuse=refuse_embedding),
)
