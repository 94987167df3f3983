"""The weights that the forward pass reads, and the gradient of a loss at them, wherever they have been moved to."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor

from lightning_so.comm.access.whole import Access


class Sent(Protocol):
    """A loss, or what else goes backward to the weights."""

    def backward(self) -> None:
        """The backward pass."""
        ...


class Forward:
    """The weights that the optimizer steps on, with gradients that ranks average themselves: all but DeepSpeed."""

    def __init__(self, params: Sequence[Tensor], access: Access) -> None:
        """Remember them.

        Args:
            params: The parameters.
            access: Where their numbers are.
        """
        self.params, self.access = list(params), access

    def weights(self) -> list[Tensor]:
        """This rank's pieces, changed in place; as of `Access.weight`."""
        return [self.access.weight(param) for param in self.params]

    def gradient(self, loss: Callable[[], Sent]) -> list[Tensor | None]:
        """The gradient at the weights as they are now, the mean over ranks: a collective.

        Args:
            loss: Computes this rank's loss, with its graph.

        Returns:
            This rank's pieces, in any shape; None for zeros.
        """
        for param in self.params:
            param.grad = None
        loss().backward()
        return [self.access.grad(param) for param in self.params]

    def take(self) -> None:
        """Go on from what the optimizer steps on, which was changed: a collective."""

    def kept(self) -> AbstractContextManager[None]:
        """Have what `gradient` has done to weights undone afterwards; the pieces are the caller's to put back."""
        return nullcontext()
