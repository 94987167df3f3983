"""A loss as terms in what a model predicts: their values, their second derivatives, and the way back to the weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from lightning_so.core.errors import ConfigError
from lightning_so.losses import common as common
from lightning_so.losses.graph import heads
from lightning_so.losses.registry import Head, names


@dataclass(frozen=True, eq=False)
class Term:
    """One loss function in a loss, over all of its predictions f.

    Attributes:
        head: Where it is in the graph.
        weights: Of its terms in the loss, in a shape that goes with them.
    """

    head: Head
    weights: Tensor

    @property
    def values(self) -> Tensor:
        """The predictions up to what the loss function does not see; the residuals of a squared error."""
        return self.head.values

    def curved(self, vector: Tensor) -> Tensor:
        """`H v`, H the Hessian of the loss in f; both in the shape of f."""
        return self.head.curvature.times(self.weights, vector)


def predictions(loss: Tensor, name: str) -> list[Head]:
    """The loss functions in a loss, and what they are of.

    Args:
        loss: The loss, before its backward pass.
        name: Who asks, for the message.

    Returns:
        Those that it is a weighted sum of, in the order in which they are met.

    Raises:
        ConfigError: If it is no such sum.
    """
    found, unknown = heads(loss, _leaves(loss))
    if unknown is not None or not found:
        raise ConfigError(
            f"{name} must know the loss function, and this loss is made with {unknown or 'a constant'}; known: "
            f"{', '.join(names())} and weighted sums of them. Write it with one of these, add yours with "
            f"`lightning_so.losses.registry.register`, or use a method with curvature='hessian'."
        )
    return found


def terms(loss: Tensor, name: str, backward: Callable[[Tensor], object] | None = None) -> list[Term]:
    """The same with their weights: the gradients that arrive at them.

    Args:
        loss: The loss, before its backward pass.
        name: Who asks, for the message.
        backward: Makes the loss's whole backward pass, where wrappers do not bear a part of one (FSDP1 goes on with
            old weights afterwards); without it the pass ends at the predictions, and the graph stays.

    Returns:
        The loss functions.

    Raises:
        ConfigError: See `predictions`.
    """
    found = predictions(loss, name)
    arriving: dict[Node, Tensor] = {}
    if backward is None:
        edges = [GradientEdge(head.value, 0) for head in found]
        gradients = torch.autograd.grad(loss, edges, retain_graph=True)
        arriving = {head.value: gradient for head, gradient in zip(found, gradients, strict=True)}
    else:
        handles = [head.value.register_prehook(_remembering(arriving, head.value)) for head in found]
        backward(loss)
        for handle in handles:
            handle.remove()
    return [Term(head, head.weigh(arriving[head.value])) for head in found]


def _remembering(arriving: dict[Node, Tensor], node: Node) -> Callable[[tuple[Tensor, ...]], None]:
    def hook(gradients: tuple[Tensor, ...]) -> None:
        arriving[node] = gradients[0]

    return hook


@dataclass(frozen=True, eq=False)
class Pulled:
    """Gradients in the predictions, to be sent back to the weights' `.grad` in the place of a loss.

    Attributes:
        loss: The loss, none of whose own gradient is sent.
        heads: The loss functions in it.
        gradients: One each, in the shape of the predictions.
        retain: Whether the graph is used again.
    """

    loss: Tensor
    heads: Sequence[Head]
    gradients: Sequence[Tensor]
    retain: bool = False

    def backward(self) -> None:
        """The backward pass from the predictions on; the loss takes part with zero, since wrappers have hooks there."""
        edges: list[Tensor | GradientEdge] = [self.loss]
        sent = [torch.zeros_like(self.loss)]
        for head, gradient in zip(self.heads, self.gradients, strict=True):
            for edge, sign in head.edges:
                edges.append(edge)
                sent.append(sign * gradient)
        torch.autograd.backward(edges, sent, retain_graph=self.retain)  # type: ignore[arg-type]


def _leaves(loss: Tensor) -> set[Node]:
    """The nodes at which a graph ends."""
    pending, seen = [loss.grad_fn], set[Node]()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [child for child, _ in node.next_functions]
    return {node for node in seen if not node.next_functions}
