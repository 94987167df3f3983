"""Tensors of users' own classes as what they hold: labels, meta data and units refuse what we do with numbers."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

#: What a class has that holds its numbers elsewhere.
DISPATCH = "__torch_dispatch__"


def plain(tensor: Tensor) -> Tensor:
    """A tensor without the functions of its class: the same numbers, at the same place in the graph.

    Args:
        tensor: Any; parameters, and classes that hold their numbers elsewhere (DTensor), stay what they are.

    Returns:
        The tensor, or an alias of it.
    """
    kind = type(tensor)
    if kind in (Tensor, nn.Parameter) or getattr(kind, DISPATCH) is not getattr(Tensor, DISPATCH):
        return tensor
    with plainly():
        return tensor.as_subclass(Tensor)


def plainly() -> AbstractContextManager[None]:
    """Have torch pass by the functions that classes of tensors put around its own."""
    return torch._C.DisableTorchFunctionSubclass()
