"""The weights before a step, put back while something is evaluated."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lightning_so.core.vector.memory import Counts
from lightning_so.linalg.products import moved
from lightning_so.probe.parameters import ParameterVector

T = TypeVar("T")


class Again(Protocol):
    """A step's batch at whatever the weights are."""

    def gradient(self, local: bool, /) -> Tensor:
        """Its gradient, a vector of the space; of this rank's part of the batch alone where replicas have one each."""
        ...

    def loss(self, local: bool, /) -> Tensor:
        """This rank's loss with its graph, whose backward pass averages over replicas unless it is local."""
        ...


#: Gives it while entered.
Replays = Callable[[], AbstractContextManager[Again]]


class Rewound:
    """The weights before the step are put back at the first evaluation, and those after it by `close`.

    Attributes:
        evaluated: Whether anything was, so that weights have been moved.
    """

    def __init__(self, vector: ParameterVector, replays: Replays, start: Tensor, counts: Counts) -> None:
        """Remember where things are.

        Args:
            vector: The parameters.
            replays: See there.
            start: The weights before the step, shape (n,).
            counts: Counts evaluations.
        """
        self._vector, self._replays, self._start, self._counts = vector, replays, start, counts
        self._kept: list[Tensor] = []
        self._open: AbstractContextManager[Any] | None = None
        self._again: Again | None = None
        self.evaluated = False

    def again(self) -> Again:
        """The batch, at the weights before the step."""
        if self._again is None:
            self._kept = [weight.detach().clone() for weight in self._vector.weights]
            self._set(self._vector.space.split(self._start))
            self._open = self._replays()
            self._again, self.evaluated = self._open.__enter__(), True
        assert self._again is not None
        return self._again

    def gradient(self, local: bool = False) -> Tensor:
        """Its gradient there; see `Again.gradient`."""
        again = self.again()
        self._counts.evaluations += 1
        with torch.enable_grad():
            return again.gradient(local)

    def beside(self, displacement: Tensor | None, read: Callable[[Tensor], T]) -> T:
        """What there is to read in the graph of this rank's loss beside those weights.

        Args:
            displacement: Where, shape (n,); None for at them.
            read: Reads it.

        Returns:
            What was read.
        """
        again, vector, counts = self.again(), self._vector, self._counts
        moves = None if displacement is None else moved(vector.weights, vector.space.split(displacement), 1.0)
        with torch.enable_grad(), moves or nullcontext():
            if not vector.access.sharded:
                counts.forwards += 1
                return read(again.loss(True))
            # A forward pass alone leaves gathered weights behind, of which the next one would be: go back too.
            counts.evaluations += 1
            found = []

            def loss() -> Tensor:
                value = again.loss(False)
                found.append(read(value))
                return value

            vector.gradient(loss)
        return found[0]

    def close(self) -> None:
        """Put the weights where the base has put them."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open, self._again = None, None
        if self._kept:
            self._set(self._kept)
            self._kept = []

    @torch.no_grad()
    def _set(self, values: Iterable[Tensor]) -> None:
        for weight, value in zip(self._vector.weights, values, strict=True):
            weight.copy_(value.view(weight.shape))
