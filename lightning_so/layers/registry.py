"""The registry of layer types: what K-FAC must know of a layer to see it as `s = W a`.

A layer is described by its weight's two sides and two functions that give *rows*: one vector a position, of the input
and of the gradient of the output. Legend: Q groups, N samples, T positions, I inputs of a group, O outputs of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_so.layers.calls import Told, of_module


@dataclass(frozen=True)
class Layer:
    """How one weight of a layer type is seen as matrices.

    Attributes:
        inputs: Module and input -> rows of the input, shape (Q, N, T, I), the bias' one left out; or, for a layer whose
            input chooses rows of the weight, indices of shape (N, T).
        outputs: Module and gradient of the output, of a `joint` layer the input too -> rows, shape (Q, N, T, O).
        groups: Module -> Q, how many equal matrices the weight holds along its first dimension.
        input_side: Side of the weight that faces the input: 1 for columns, 0 for rows.
        indices: Whether the input chooses rows: its factor is then a diagonal.
        single: Input -> whether it has no sample dimension.
        joint: Whether rows of the output depend on the whole input: then no samples are left out.
        padded: Whether inputs may be sequences, (N, ..., I), whose positions without a gradient are padding.
        weight: Name of the weight.
        bias: Name of the bias that is one more column of it; of an input side that is columns, an input of one.
        listen: Module and whom to tell of its calls -> what to remove for silence.
        refuse: Module -> the reason why it cannot be seen so, or None.
        inputs_at: Module, input and numbers of positions, counted through all samples, (P,) -> the rows of these alone,
            shape (Q, P, I); where `inputs` are copies, which need not be made for all.
        outputs_at: The same of `outputs`.
    """

    inputs: Callable[[nn.Module, Tensor], Tensor]
    outputs: Callable[..., Tensor]
    groups: Callable[[nn.Module], int] = lambda module: 1
    input_side: int = 1
    indices: bool = False
    single: Callable[[Tensor], bool] = lambda x: x.ndim < 2
    joint: bool = False
    padded: bool = False
    weight: str = "weight"
    bias: str | None = "bias"
    listen: Callable[[nn.Module, Told], list[Any]] = of_module
    refuse: Callable[[nn.Module], str | None] = lambda module: None
    inputs_at: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None
    outputs_at: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None


_KNOWN: dict[str, tuple[Layer, ...]] = {}
_REFUSED: dict[str, str] = {}


def register(kind: type[nn.Module] | str, *layers: Layer) -> None:
    """Make a layer type known; subclasses that inherit `forward` count as it.

    Args:
        kind: The type, or, where it should not be imported, its module and name, "package.module.Name".
        layers: The descriptions of its weights.
    """
    _KNOWN[_name(kind)] = layers


def refuse(kind: type[nn.Module], reason: str) -> None:
    """Say why a layer type and its subclasses have no rows.

    Args:
        kind: The type.
        reason: The reason, and what works on it.
    """
    _REFUSED[_name(kind)] = reason


def lookup(module: nn.Module) -> tuple[Layer, ...]:
    """The descriptions of a module's type, or of the nearest parent whose `forward` it inherits; none if unknown."""
    for kind in type(module).__mro__:
        if _name(kind) in _KNOWN:
            return _KNOWN[_name(kind)] if type(module).forward is kind.forward else ()
    return ()


def refusal(module: nn.Module) -> str:
    """Why a module without descriptions has no rows."""
    kinds = type(module).__mro__
    if reason := next(filter(None, (_REFUSED.get(_name(kind)) for kind in kinds)), None):
        return reason
    if parent := next((kind.__name__ for kind in kinds if _name(kind) in _KNOWN), None):
        own = _name(kinds[0])
        return f"no rows for {own}: its forward pass is not that of {parent}; register('{own}', ...) says what it is"
    known, name = sorted(name.rpartition(".")[2] for name in _KNOWN), kinds[0].__name__
    # Others have classes of the same names (torch_geometric's Linear).
    return f"no rows for {_name(kinds[0]) if name in known else name}; known: {', '.join(known)}"


def _name(kind: type | str) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
