"""The registry of loss functions: by the name of their node in autograd's graph, where and how they are curved.

Reading the graph instead of the call finds a loss however it is written: a module, a function, or by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node

from lightning_so.losses.curvature import Curvature


@dataclass(frozen=True, eq=False)
class Head:
    """One loss function in a graph, met on the way from the loss to the predictions.

    Attributes:
        value: The node of its value: the gradient that arrives here is the weight of its terms.
        node: The node whose outgoing gradient is that in the predictions; often the same.
        curvature: Its Hessian.
        weigh: Gradient at `value` -> weight of every term; mostly the identity.
    """

    value: Node
    node: Node
    curvature: Curvature
    weigh: Callable[[Tensor], Tensor] = lambda c: c


Reader = Callable[[Node], Head | None]
_KNOWN: dict[str, tuple[str, Reader]] = {}


def register(node: str, name: str, reader: Reader) -> None:
    """Make a loss function known.

    Args:
        node: The name of its node, for example "MseLossBackward0".
        name: What users call it.
        reader: Node -> its head; None where a node of that name is not this loss function.
    """
    _KNOWN[node] = (name, reader)


def lookup(node: Node) -> Head | None:
    """The head that starts at a node, or None."""
    known = _KNOWN.get(node.name())
    return known[1](node) if known else None


def names() -> list[str]:
    """What the known loss functions are called."""
    return sorted({name for name, _ in _KNOWN.values()})
