"""Curvature-vector products from what a training can give: its gradient, or its loss with a graph.

Finite differences need the gradient alone, as a black box: with DDP, FSDP and ZeRO, compiled, checkpointed, under
autocast. Where second derivatives exist, double backward is exact.

Legend: n numbers of this rank.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_so.linalg.graph import nodes
from lightning_so.linalg.vectors import Space

#: Steps of finite differences relative to the length of the weights, by the precision of the gradients.
STEPS = {torch.float32: 3e-4, torch.bfloat16: 3e-2, torch.float16: 3e-2, torch.float64: 1e-6}
#: How products are taken: "auto" is exact (by double backward) where that exists, else by differences of gradients.
PRODUCTS = ("auto", "exact", "difference")
#: Added to the length of the weights, for those that are zero.
LEAST = 1e-3
#: A block is moved as far as one with this share of the root mean square of all weights, at least.
SHARE = 0.1


class BlockProduct(Protocol):
    """`v -> A v`, and the same of diagonal blocks of A."""

    def __call__(self, v: Tensor, /) -> Tensor:
        """A v, shape (n,)."""
        ...

    def block(self, numbers: Sequence[int]) -> "BlockProduct":
        """The product with the diagonal block of some parameters, by their numbers in the space."""
        ...


@dataclass
class FiniteDifference:
    """H v from gradients at moved weights.

        forward:  (g(w + e v) - g(w)) / e             error e/2 T[v, v], one gradient a product
        central:  (g(w + e v) - g(w - e v)) / (2 e)   error e^2/6, two gradients a product
        e = r (|w| + 1e-3) / |v|

    The weights are put back as they were, bit for bit, not by subtracting.

    Source: Pearlmutter 1994; Martens 2010; the step from measurements.

    Attributes:
        weights: This rank's pieces of the weights, changed in place meanwhile; in the order of the space.
        gradient: The gradient at the weights as they are, shape (n,): of the same batch at every call.
        space: What vectors are.
        step: r; about the cube root of the precision of the gradients for central differences.
        central: Whether differences are central.
        here: The gradient at the weights, where it is known; forward differences compute it once otherwise.
        calls: Gradients that were computed.
    """

    weights: Sequence[Tensor]
    gradient: Callable[[], Tensor]
    space: Space
    step: float = STEPS[torch.float32]
    central: bool = False
    here: Tensor | None = None
    calls: int = 0

    @torch.no_grad()
    def __call__(self, v: Tensor) -> Tensor:
        """H v, shape (n,); NaN where a gradient is not finite, zero for zero."""
        length = self.space.norm(v)
        if length == 0:
            return torch.zeros_like(v)
        weights = torch.cat([weight.reshape(-1).to(v) for weight in self.weights])
        size = self.step * (self.space.norm(weights) + LEAST) / length
        if self.central:
            return (self._at(v, size) - self._at(v, -size)) / (2 * size)
        if self.here is None:
            self.here = self._gradient()
        return (self._at(v, size) - self.here) / size

    def block(self, numbers: Sequence[int]) -> "FiniteDifference":
        """See `BlockProduct.block`; other weights stay where they are, and steps are relative to the block's own."""
        space, block = self.space, self.space.block(numbers)
        flat = torch.cat([weight.detach().reshape(-1).to(space.dtype) for weight in self.weights])
        own = block.norm(space.part(flat, numbers)) + LEAST
        # Of a block that began at zero (an adapter's), a step relative to its length is lost in rounding.
        usual = space.norm(flat) * (block.dimension / space.dimension) ** 0.5
        return FiniteDifference(
            [self.weights[number] for number in numbers],
            lambda: space.part(self.gradient(), numbers),
            block,
            self.step * max(1.0, SHARE * usual / own),
            self.central,
            None if self.here is None else space.part(self.here, numbers),
        )

    def _at(self, v: Tensor, size: float) -> Tensor:
        with moved(self.weights, self.space.split(v), size):
            return self._gradient()

    def _gradient(self) -> Tensor:
        self.calls += 1
        with torch.enable_grad():
            return self.gradient().detach().clone()


@torch.no_grad()
def move(weights: Sequence[Tensor], direction: Sequence[Tensor], size: float) -> None:
    """Take weights to `w + size v`, for good.

    Args:
        weights: w, changed in place.
        direction: v, one tensor a weight with as many numbers.
        size: How far.
    """
    for weight, part in zip(weights, direction, strict=True):
        weight.add_(part.view(weight.shape), alpha=size)


@contextmanager
def moved(weights: Sequence[Tensor], direction: Sequence[Tensor], size: float) -> Iterator[None]:
    """Weights at `w + size v` for a while, and bit for bit as they were afterwards, whatever happens.

    A graph that was made before stays good: as the values come back, they are moved where autograd does not count.

    Args:
        weights: w, changed in place.
        direction: v, one tensor a weight with as many numbers.
        size: How far.
    """
    uncounted = [weight.data for weight in weights]
    kept = [weight.clone() for weight in uncounted]
    move(uncounted, direction, size)
    try:
        yield
    finally:
        torch._foreach_copy_(uncounted, kept)


class DoubleBackward:
    """H v by differentiating `<g, v>`: exact, where the graph of the loss can be differentiated twice.

    Source: Pearlmutter 1994.

    Attributes:
        reached: By parameter, whether it is in the graph.
    """

    def __init__(self, loss: Callable[[], Tensor], params: Sequence[Tensor]) -> None:
        """Keep the graph of one gradient, from which every product goes on.

        Args:
            loss: Gives the loss with its graph; called once.
            params: Whole parameters in the order of the space.
        """
        self._params = list(params)
        with torch.enable_grad():
            grads = torch.autograd.grad(loss(), self._params, create_graph=True, allow_unused=True)
        self.reached = [grad is not None for grad in grads]
        self._grads = [torch.zeros_like(p) if g is None else g for p, g in zip(self._params, grads, strict=True)]

    @property
    def gradient(self) -> Tensor:
        """g, shape (n,)."""
        return _flat([grad.detach() for grad in self._grads])

    def ends(self) -> bool:
        """Whether a backward pass in the graph has none itself: its part of a product is left out without a word."""
        return any(node.name().split("::")[-1] == "Error" for node in nodes(self._grads))

    def block(self, numbers: Sequence[int]) -> "DoubleBackward":
        """See `BlockProduct.block`; on the same graph, so that it is usable as long as this one is."""
        found = copy.copy(self)
        found._params, found._grads = ([of[number] for number in numbers] for of in (self._params, self._grads))
        return found

    def __call__(self, v: Tensor) -> Tensor:
        """H v, shape (n,)."""
        parts = [part.view(p.shape).to(p) for part, p in zip(v.split([p.numel() for p in self._params]), self._params)]
        pairs = [(grad, part) for grad, part in zip(self._grads, parts, strict=True) if grad.requires_grad]
        if not pairs:
            return torch.zeros_like(v)
        grads, vectors = zip(*pairs, strict=True)
        found = torch.autograd.grad(grads, self._params, vectors, retain_graph=True, allow_unused=True)
        return _flat([torch.zeros_like(p) if h is None else h for p, h in zip(self._params, found, strict=True)]).to(v)


class GaussNewton:
    """G v, `G = J' H_f J`: J the Jacobian of the outputs f, H_f the Hessian of the loss in them; never negative.

    J v is had from two passes backward: `d/du <J' u, v>`.

    Source: Schraudolph 2002.
    """

    def __init__(self, outputs: Tensor, loss: Callable[[Tensor], Tensor], params: Sequence[Tensor]) -> None:
        """Keep the graphs.

        Args:
            outputs: f with its graph, from the parameters.
            loss: Gives the loss of outputs: convex in them.
            params: Whole parameters in the order of the space.
        """
        self._params, self._outputs = list(params), outputs
        with torch.enable_grad():
            self._u = torch.zeros_like(outputs, requires_grad=True)
            back = torch.autograd.grad(outputs, self._params, self._u, create_graph=True, allow_unused=True)
            self._back = [(g, number) for number, g in enumerate(back) if g is not None]
            self._cut = outputs.detach().requires_grad_()
            (self._of_outputs,) = torch.autograd.grad(loss(self._cut), self._cut, create_graph=True)

    def __call__(self, v: Tensor) -> Tensor:
        """G v, shape (n,)."""
        parts = [part.view(p.shape) for part, p in zip(v.split([p.numel() for p in self._params]), self._params)]
        back, numbers = zip(*self._back, strict=True)
        (Jv,) = torch.autograd.grad(back, self._u, [parts[number] for number in numbers], retain_graph=True)
        curved = self._of_outputs.requires_grad
        HJv = torch.autograd.grad(self._of_outputs, self._cut, Jv, retain_graph=True)[0] if curved else Jv * 0
        found = torch.autograd.grad(self._outputs, self._params, HJv, retain_graph=True, allow_unused=True)
        return _flat([torch.zeros_like(p) if g is None else g for p, g in zip(self._params, found, strict=True)])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
