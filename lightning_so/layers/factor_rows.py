"""The rows of one use of a layer in one micro-batch, whose outer products sum to its two factors.

Legend: Q groups, P terms, T positions, I inputs of a group (the bias' one included), O outputs of a group.

    expand:  A = sum_nt a a',  G = sum_nt g g'          (every position is a sample of its own; count N T)
    reduce:  A = sum_n (mean_t a)(mean_t a)',  G = sum_n (sum_t g)(sum_t g)'                       (count N)

Divided by the counts of positions and of loss terms these are the factors of Eschenhagen et al. 2023, arXiv 2311.00636.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_so.layers.registry import Layer


@dataclass(frozen=True)
class FactorRows:
    """What one use adds to the factors.

    Attributes:
        a: Rows of the input side, shape (Q, P, I); or, where indices choose rows of the weight, how often each was
            chosen, the diagonal of A, shape (rows of the weight,).
        g: Rows of the output side, shape (Q, P, O).
        count: Terms of A's sum, a scalar tensor.
    """

    a: Tensor
    g: Tensor
    count: Tensor


def factor_rows(
    layer: Layer, module: nn.Module, x: Tensor, g: Tensor, *, one: float | None, reduce: bool, dtype: torch.dtype
) -> FactorRows:
    """The rows of one use of a layer on both sides.

    Args:
        layer: The layer's description.
        module: The layer.
        x: Its input.
        g: Gradient of the loss in its output.
        one: What the bias' column holds, zero where it is frozen; None without a bias.
        reduce: Whether positions of a sample share one term (reduce) or have one each (expand).
        dtype: Precision of the sums.

    Returns:
        The rows.
    """
    g_QNTO = output_rows(layer, module, x, g, one=one, dtype=dtype)
    if layer.indices:
        return _chosen(layer, module, x, g_QNTO)
    a_QNTI = layer.inputs(module, x).to(dtype)
    if one is not None and layer.input_side:
        a_QNTI = F.pad(a_QNTI, (0, 1), value=one)
    if reduce:
        a_QNI, g_QNO = a_QNTI.mean(2), g_QNTO.sum(2)
        return FactorRows(a_QNI, g_QNO, torch.as_tensor(float(a_QNI.shape[1]), device=g.device))
    a_QPI, g_QPO = a_QNTI.flatten(1, 2), g_QNTO.flatten(1, 2)
    if a_QNTI.shape[2] == 1 or a_QNTI.shape[0] > 1 or not layer.padded:
        return FactorRows(a_QPI, g_QPO, torch.as_tensor(float(a_QPI.shape[1]), device=g.device))
    # Positions without a gradient are padding: they are no samples of the input either.
    real = (g_QPO != 0).any(-1, keepdim=True)
    return FactorRows(a_QPI * real, g_QPO, real.sum().to(dtype))


def output_rows(
    layer: Layer, module: nn.Module, x: Tensor, g: Tensor, *, one: float | None, dtype: torch.dtype
) -> Tensor:
    """Rows of the output side, (Q, N, T, O); see `factor_rows`."""
    if not layer.joint:
        return layer.outputs(module, g).to(dtype)
    g_QNTO = layer.outputs(module, g, x).to(dtype)
    if one is None:
        return g_QNTO[..., :1]  # A shift of another group is not in the block.
    return g_QNTO if one else F.pad(g_QNTO[..., :1], (0, 1))


def _chosen(layer: Layer, module: nn.Module, x: Tensor, g_QNTO: Tensor) -> FactorRows:
    """An Embedding: inputs are one-hot, so that A is a diagonal of frequencies."""
    indices = layer.inputs(module, x).flatten()
    g = g_QNTO.flatten(1, 2)
    real = (g[0] != 0).any(-1) & (indices >= 0)
    assert isinstance(module, nn.Embedding)
    counts = torch.zeros(module.num_embeddings, dtype=g.dtype, device=g.device)
    counts.index_add_(0, indices.clamp_min(0), real.to(g.dtype))
    return FactorRows(counts, g * real[:, None], real.sum().to(g.dtype))


def thin(layer: Layer, x: Tensor, g: Tensor, *, positions: int, most: int, step: int) -> tuple[Tensor, Tensor, float]:
    """Every k-th sample of a micro-batch, so that about `most` positions are left, and the share that they are.

    The first of them moves with the step, so that every sample has the same chance: sums divided by the share are
    unbiased.

    Args:
        layer: The layer's description.
        x: Its input.
        g: Gradient of the output.
        positions: How many the gradient has.
        most: How many should be left.
        step: Decides which.

    Returns:
        The kept samples of x and g, and their share.
    """
    stride = min(g.shape[0], -(-positions // most)) if g.ndim > 1 else 1
    if stride <= 1 or layer.single(x) or layer.joint:
        return x, g, 1.0
    kept = slice(step * 7919 % stride, None, stride)
    return x[kept], g[kept], len(g[kept]) / len(g)


def loss_terms(layer: Layer, x: Tensor, g: Tensor, *, reduce: bool) -> Tensor | float:
    """Terms of a loss: samples, or, of a sequence that is not reduced, positions with a gradient.

    Args:
        layer: The description of that whose output gradient comes first.
        x: Its input.
        g: Gradient of its output.
        reduce: Whether positions share one term.

    Returns:
        Their number.
    """
    if layer.single(x):
        return 1.0
    if reduce or not layer.padded or g.ndim < 3:
        return float(g.shape[0])
    return (g != 0).any(-1).sum()
