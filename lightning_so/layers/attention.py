"""MultiheadAttention as rows: each of its matrices is a layer of its own, used functionally.

The queries', keys' and values' matrix is one block, `s = W a` with s of all three: a call with a slice of it has the
slice's part of s alone, and zeros elsewhere.

Legend: L positions, N samples, D features; inside attention they come in this order, or as (L N, D).
"""

from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_so.layers.calls import Ear, OwnHook, Told
from lightning_so.layers.common import linear_rows
from lightning_so.layers.registry import Layer, register


def listen(name: str, module: nn.Module, told: Told) -> list[Any]:
    """Listen to the multiplications by one matrix of an attention.

    Args:
        name: Of the matrix.
        module: The attention.
        told: What is told of each.

    Returns:
        What to `remove()` for silence.
    """
    ear = Ear()

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        assert isinstance(module, nn.MultiheadAttention)
        if not (module.training and torch.is_grad_enabled()):
            return
        query = args[0] if args else kwargs["query"]
        samples = 1 if query.ndim == 2 else query.shape[0 if module.batch_first else 1]
        matrix: Tensor = attrgetter(name)(module)

        def heard(weight: Tensor, x: Tensor, output: Tensor) -> None:
            first = _first(weight, matrix)
            if first is not None:
                sides = (first, len(matrix) - len(weight) - first)
                told(_samples_first(x, samples), output, partial(_whole, samples=samples, sides=sides))

        ear.open(heard)

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        ear.remove()

    # Also where the forward pass raises, a checkpoint's recomputation that has all it needs for one.
    hooks: list[Any] = [OwnHook(module, before), OwnHook(module, after)]
    opens = module.register_forward_pre_hook(hooks[0], with_kwargs=True)
    return [opens, module.register_forward_hook(hooks[1], always_call=True), ear]


def _first(weight: Tensor, matrix: Tensor) -> int | None:
    """Which row of the matrix a weight begins at; None if it is no part of it."""
    if weight is matrix:
        return 0
    if weight._base is not matrix:
        return None
    return (weight.storage_offset() - matrix.storage_offset()) // matrix.stride(0)


def _samples_first(x_LND: Tensor, samples: int) -> Tensor:
    if not samples:
        return x_LND.reshape(0, 1, x_LND.shape[-1])
    return x_LND.reshape(-1, samples, x_LND.shape[-1]).transpose(0, 1)


def _whole(g: Tensor, samples: int, sides: tuple[int, int]) -> Tensor:
    """The gradient in all outputs of a matrix, of that in a slice's."""
    g = _samples_first(g, samples)
    return F.pad(g, sides) if any(sides) else g


def projection(weight: str, bias: str | None = None) -> Layer:
    """One matrix of an attention.

    Args:
        weight: Its name.
        bias: That of the bias that is a column of it.

    Returns:
        Its description.
    """
    return Layer(linear_rows, linear_rows, weight=weight, bias=bias, padded=True, listen=partial(listen, weight))


register(
    nn.MultiheadAttention,
    projection("in_proj_weight", "in_proj_bias"),
    projection("out_proj.weight", "out_proj.bias"),
    *map(projection, ("q_proj_weight", "k_proj_weight", "v_proj_weight")),
)
