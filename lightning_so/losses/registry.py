"""The registry of loss functions: by the name of their node in autograd's graph, where and how they are curved.

Reading the graph instead of the call finds a loss however it is written: a module, a function, or by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.utils.hooks import RemovableHandle

from lightning_so.losses.curvature import Curvature


@dataclass(frozen=True, eq=False)
class Head:
    """One loss function in a graph, met on the way from the loss to the predictions.

    Attributes:
        value: The node of its value: the gradient that arrives here is the weight of its terms.
        node: The node whose outgoing gradient is that in the predictions; often the same.
        curvature: Its Hessian.
        values: The predictions, up to what the loss function does not see; of a squared error the residuals.
        weigh: Gradient at `value` -> weight of every term; mostly the identity.
        squared: Whether every term is its residual's square, times half of its second derivative.
    """

    value: Node
    node: Node
    curvature: Curvature
    values: Tensor
    weigh: Callable[[Tensor], Tensor] = lambda c: c
    squared: bool = False

    def overheard(self, weights: dict["Head", Tensor]) -> RemovableHandle:
        """Have the next backward pass note the weights of the terms.

        Args:
            weights: Where they are noted.

        Returns:
            What takes it back.
        """

        def hook(arriving: tuple[Tensor, ...]) -> None:
            weights[self] = self.weigh(arriving[0])

        return self.value.register_prehook(hook)

    @property
    def edges(self) -> list[tuple[GradientEdge, float]]:
        """Where gradients in `values` go, and with which sign: of a difference to both, where both have a graph."""
        below = dict.fromkeys(self.node.next_functions)  # The factors of `r * r` are one.
        signs = (1.0, -1.0) if self.squared else (1.0,)
        found = zip(below, signs, strict=False)
        return [(GradientEdge(node, number), sign) for (node, number), sign in found if node is not None]


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


def unknown(name: str, made: str | None, way: str) -> str:
    """What is wrong where a loss is no weighted sum of known loss functions.

    Args:
        name: Who must know it.
        made: The node that is none of them; None for a loss without any.
        way: What to do.

    Returns:
        The message.
    """
    return (
        f"{name} must know the loss function, and this loss is made with {made or 'a constant'}; known: "
        f"{', '.join(names())} and weighted sums of them. {way}"
    )


def names() -> list[str]:
    """What the known loss functions are called."""
    return sorted({name for name, _ in _KNOWN.values()})
