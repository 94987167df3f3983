"""The registry of layer types: what K-FAC must know of a layer to see it as `s = W a`.

A layer is described by its weight's two sides and two functions that give *rows*: one vector a position, of the input
and of the gradient of the output. Legend: Q groups, N samples, T positions, I inputs of a group, O outputs of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """How one layer type is seen as matrices.

    Attributes:
        inputs: Module and input -> rows of the input, shape (Q, N, T, I), the bias' one left out; or, for a layer whose
            input chooses rows of the weight, indices of shape (N, T).
        outputs: Module and gradient of the output, of a `joint` layer the input too -> rows, shape (Q, N, T, O).
        groups: Module -> Q, how many equal matrices the weight holds along its first dimension.
        input_side: Side of the weight that faces the input: 1 for columns, 0 for rows.
        indices: Whether the input chooses rows: its factor is then a diagonal.
        single: Input -> whether it has no sample dimension.
        biased: Whether a bias is one more column of the weight; of an input side that is columns, an input of one.
        joint: Whether rows of the output depend on the whole input: then no samples are left out.
        refuse: Module -> the reason why it cannot be seen so, or None.
    """

    inputs: Callable[[nn.Module, Tensor], Tensor]
    outputs: Callable[..., Tensor]
    groups: Callable[[nn.Module], int] = lambda module: 1
    input_side: int = 1
    indices: bool = False
    single: Callable[[Tensor], bool] = lambda x: x.ndim < 2
    biased: bool = True
    joint: bool = False
    refuse: Callable[[nn.Module], str | None] = lambda module: None


_KNOWN: dict[type[nn.Module], Layer] = {}


def register(kind: type[nn.Module], layer: Layer) -> None:
    """Make a layer type known; subclasses that inherit `forward` count as it.

    Args:
        kind: The type; its parameters are called `weight` and, where there is one, `bias`.
        layer: Its description.
    """
    _KNOWN[kind] = layer


def lookup(module: nn.Module) -> Layer | None:
    """The description of a module's type, or of the nearest parent whose `forward` it inherits; None if unknown."""
    for kind in type(module).__mro__:
        if kind in _KNOWN:
            return _KNOWN[kind] if type(module).forward is kind.forward else None
    return None


def names() -> list[str]:
    """Names of the known types."""
    return sorted(kind.__name__ for kind in _KNOWN)
