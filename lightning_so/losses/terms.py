"""A loss as terms in what a model predicts: their values, their second derivatives, and the way back to the weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from lightning_so.errors import ConfigError
from lightning_so.linalg.graph import nodes
from lightning_so.losses import common as common
from lightning_so.losses.graph import heads
from lightning_so.losses.registry import Head, unknown


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
    ends = {node for node in nodes([loss]) if not node.next_functions}
    found, other = heads(loss, ends)
    if other is not None or not found:
        way = (
            "Write it with one of these, add yours with `lightning_so.losses.registry.register`, or use a method with "
            "curvature='hessian'."
        )
        raise ConfigError(unknown(name, other, way))
    return found


def terms(loss: Tensor, name: str) -> list[Term]:
    """The same with their weights, by a pass from the loss to them; the graph stays.

    Args:
        loss: The loss, before its backward pass.
        name: Who asks, for the message.

    Returns:
        The loss functions.

    Raises:
        ConfigError: See `predictions`.
    """
    found = predictions(loss, name)
    arriving = torch.autograd.grad(loss, [GradientEdge(head.value, 0) for head in found], retain_graph=True)
    return [Term(head, head.weigh(weights)) for head, weights in zip(found, arriving, strict=True)]


class Overheard:
    """The same from a whole backward pass of the loss, where wrappers bear no part of one: FSDP1, ZeRO."""

    def __init__(self, loss: Tensor, name: str) -> None:
        """Listen.

        Args:
            loss: The loss, before its backward pass.
            name: Who asks, for the message.

        Raises:
            ConfigError: See `predictions`.
        """
        self._heads, self._weights = predictions(loss, name), dict[Head, Tensor]()
        self._handles = [head.overheard(self._weights) for head in self._heads]

    def terms(self) -> list[Term]:
        """The loss functions, after the pass."""
        for handle in self._handles:
            handle.remove()
        return [Term(head, self._weights[head]) for head in self._heads]


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


def lasts(loss: Tensor) -> bool:
    """Whether a graph bears several backward passes: compiled ones give their buffers away in the first."""
    return not any(node.name().startswith("CompiledFunction") for node in nodes([loss]))
