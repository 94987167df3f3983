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
from lightning_so.layers.sampling import positions, samples


@dataclass(frozen=True)
class FactorRows:
    """What one use adds to the factors.

    Attributes:
        a: Rows of the input side, shape (Q, P, I); or, where indices choose rows of the weight, how often each was
            chosen, the diagonal of A, shape (rows of the weight,).
        g: Rows of the output side, shape (Q, P, O).
        count: Terms of A's sum.
        share: Which part they are of what there is.
    """

    a: Tensor
    g: Tensor
    count: Tensor | float
    share: float


def factor_rows(
    layer: Layer,
    module: nn.Module,
    x: Tensor,
    g: Tensor,
    *,
    unit: Tensor | float,
    one: float | None,
    reduce: bool,
    dtype: torch.dtype,
    most: int,
    step: int,
) -> FactorRows:
    """The rows of one use of a layer on both sides.

    Args:
        layer: The layer's description.
        module: The layer.
        x: Its input.
        g: Gradient of the loss in its output.
        unit: What makes it the gradient of one sample's loss.
        one: What the bias' column holds, zero where it is frozen; None without a bias.
        reduce: Whether positions of a sample share one term (reduce) or have one each (expand).
        dtype: Precision of the sums.
        most: How many positions should be left of more; see `sampling`.
        step: Decides which.

    Returns:
        The rows.
    """
    if layer.joint or (reduce and not layer.indices):
        x, g, share = samples(layer, module, x, g, most=most, step=step)
        g_QNO = output_rows(layer, module, x, g, unit=unit, one=one, dtype=dtype).sum(2)
        a_QNI = with_one(layer, layer.inputs(module, x).to(dtype), one).mean(2)
        return FactorRows(a_QNI, g_QNO, float(a_QNI.shape[1]), share)
    x, g, some, share = positions(layer, module, x, g, most=most, step=step)
    g_QPO = some.rows(layer.outputs, layer.outputs_at, module, g).to(dtype) * unit
    if layer.indices:
        indices = layer.inputs(module, x).flatten()
        return _chosen(module, indices if some.kept is None else indices[some.kept], g_QPO, share)
    a_QPI = with_one(layer, some.rows(layer.inputs, layer.inputs_at, module, x).to(dtype), one)
    if some.each == 1 or len(g_QPO) > 1 or not layer.padded:
        return FactorRows(a_QPI, g_QPO, float(some.count), share)
    # Positions without a gradient are padding: they are no samples of the input either.
    real_QP = lives(g_QPO)
    return FactorRows(a_QPI * real_QP[..., None], g_QPO, real_QP.sum(), share)


def with_one(layer: Layer, rows: Tensor, one: float | None) -> Tensor:
    """Rows of the input side with the bias' column, where the layer has one in the block; see `factor_rows`."""
    return rows if one is None or not layer.input_side else F.pad(rows, (0, 1), value=one)


def output_rows(
    layer: Layer,
    module: nn.Module,
    x: Tensor,
    g: Tensor,
    *,
    unit: Tensor | float,
    one: float | None,
    dtype: torch.dtype,
) -> Tensor:
    """All rows of the output side, (Q, N, T, O); see `factor_rows`."""
    if not layer.joint:
        return layer.outputs(module, g).to(dtype) * unit
    g_QNTO = layer.outputs(module, g, x).to(dtype) * unit
    if one is None:
        return g_QNTO[..., :1]  # A shift of another group is not in the block.
    return g_QNTO if one else F.pad(g_QNTO[..., :1], (0, 1))


def _chosen(module: nn.Module, indices_P: Tensor, g_QPO: Tensor, share: float) -> FactorRows:
    """An Embedding: inputs are one-hot, so that A is a diagonal of frequencies."""
    real = lives(g_QPO[0]) & (indices_P >= 0)
    assert isinstance(module, nn.Embedding)
    counts = torch.zeros(module.num_embeddings, dtype=g_QPO.dtype, device=g_QPO.device)
    counts.index_add_(0, indices_P.clamp_min(0), real.to(g_QPO.dtype))
    return FactorRows(counts, g_QPO * real[:, None], real.sum(), share)


def lives(g: Tensor) -> Tensor:
    """Which rows (..., D) have a number that is not zero; largest ones are found far faster than any."""
    return g.abs().amax(-1) != 0


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
    return lives(g).sum()
