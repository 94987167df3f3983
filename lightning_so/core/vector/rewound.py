"""The weights before a step, put back while something is evaluated."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from torch import Tensor


class Again(Protocol):
    """A step's batch at whatever the weights are."""

    def gradient(self, local: bool, /) -> Tensor:
        """Its gradient, a vector of the space; of this rank's part of the batch alone where replicas have one each."""
        ...

    def loss(self, local: bool, /) -> Tensor:
        """This rank's loss with its graph, whose backward pass averages over replicas unless it is local."""
        ...


T = TypeVar("T")


#: Gives it while entered.
Replays = Callable[[], AbstractContextManager[Again]]
