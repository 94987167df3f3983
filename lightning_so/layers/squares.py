"""Second moments of the gradients of single samples, in given bases of both sides.

    s = sum_n (Q_G' (sum_t g_nt a_nt') Q_A)^2,  elementwise

Positions of a sample are summed before squaring. Source: George et al. 2018, arXiv 1806.03884, equation 8.
Legend: Q groups, N samples, T positions, I inputs of a group (the bias' one included), O outputs of a group.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_so.layers.factor_rows import output_rows, with_one
from lightning_so.layers.registry import Layer

#: Numbers of single samples' gradients that are held at once.
ROOM = 1 << 24

Turn = Callable[[Tensor], Tensor]


def squares(
    layer: Layer,
    module: nn.Module,
    x: Tensor,
    g: Tensor,
    *,
    unit: Tensor | float,
    one: float | None,
    dtype: torch.dtype,
    inputs: Turn,
    outputs: Turn,
) -> Tensor:
    """What one use of a layer adds to s, in the orientation of its weight.

    Args:
        layer: The layer's description.
        module: The layer.
        x: Its input.
        g: Gradient of the loss in its output.
        unit: What makes it the gradient of one sample's loss.
        one: What the bias' column holds, zero where it is frozen; None without a bias.
        dtype: Precision of the sums.
        inputs: Turns rows of the input, (Q, P, I), into the basis Q_A.
        outputs: Turns rows of the output, (Q, P, O), into the basis Q_G.

    Returns:
        s, shape (Q, O, I); of a layer whose input side is the rows of its weight, (Q, I, O).
    """
    g_QNTO = _turned(output_rows(layer, module, x, g, unit=unit, one=one, dtype=dtype), outputs)
    if layer.indices:
        return _of_chosen(layer.inputs(module, x), g_QNTO[0], module)
    a_QNTI = _turned(with_one(layer, layer.inputs(module, x).to(dtype), one), inputs)
    a_QNTI = a_QNTI.expand(-1, g_QNTO.shape[1], -1, -1)  # a constant input is one row
    found = _summed(g_QNTO, a_QNTI)
    return found if layer.input_side else found.mT


def _turned(rows_QNTD: Tensor, turn: Turn) -> Tensor:
    return turn(rows_QNTD.flatten(1, 2)).view(rows_QNTD.shape)


def _summed(g_QNTO: Tensor, a_QNTI: Tensor) -> Tensor:
    """S of all samples, (Q, O, I)."""
    if g_QNTO.shape[2] == 1:
        return g_QNTO[:, :, 0].square().mT @ a_QNTI[:, :, 0].square()
    size = g_QNTO.shape[0] * g_QNTO.shape[3] * a_QNTI.shape[3]
    chunk = max(1, ROOM // size)
    total = g_QNTO.new_zeros(g_QNTO.shape[0], g_QNTO.shape[3], a_QNTI.shape[3])
    for g, a in zip(g_QNTO.split(chunk, 1), a_QNTI.split(chunk, 1), strict=True):
        total += (g.mT @ a).square_().sum(1)
    return total


def _of_chosen(indices_NT: Tensor, g_NTO: Tensor, module: nn.Module) -> Tensor:
    """S of an Embedding, (1, rows of the weight, O): gradients of one token add up within a sample."""
    assert isinstance(module, nn.Embedding)
    count = module.num_embeddings
    numbers = torch.arange(len(indices_NT), device=indices_NT.device)[:, None] * count + indices_NT
    real = indices_NT.flatten() >= 0
    pairs, places = numbers.flatten()[real].unique(return_inverse=True)
    sums = g_NTO.new_zeros(len(pairs), g_NTO.shape[-1]).index_add_(0, places, g_NTO.flatten(0, 1)[real])
    return g_NTO.new_zeros(count, g_NTO.shape[-1]).index_add_(0, pairs % count, sums.square())[None]
