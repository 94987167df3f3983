"""Evaluations of a step's batch around the weights that the step began with."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_so.core.examined import Examined, examined
from lightning_so.core.vector_method import Batch
from lightning_so.linalg.products import FiniteDifference, moved

if TYPE_CHECKING:
    from lightning_so.core.vector_engine import VectorEngine

#: Gives, while it is entered, the gradient of the step's batch at whatever the weights are: a vector of the space. Told
#: True, that of this rank's part of the batch, where replicas have a part each.
Replays = Callable[[], AbstractContextManager[Callable[[bool], Tensor]]]
#: What is wanted of a gradient: all of it, or some linear function.
Linear = Callable[[Tensor], Tensor]


class Around(Batch):
    """The weights before the step are put back at the first evaluation, and those after it by `close`."""

    def __init__(
        self, engine: "VectorEngine", replays: Replays, start: Tensor, here: Tensor | None, half: bool
    ) -> None:
        """Remember where things are.

        Args:
            engine: Whose step it is.
            replays: See there.
            start: The weights before the step, shape (n,).
            here: The gradient there, if it is that of one batch.
            half: Whether gradients are computed in half precision.
        """
        self._engine, self._whole, self._replays, self._half = engine, engine.whole, replays, half
        self._start, self._here = start, here
        self._kept: list[Tensor] = []
        self._open: AbstractContextManager[Any] | None = None
        self._gradient: Callable[[bool], Tensor] | None = None

    @property
    def here(self) -> Tensor:
        """See `Batch.here`."""
        if self._here is None:
            self._here = self._evaluate()
        return self._here

    def at(self, displacement: Tensor) -> Tensor:
        """See `Batch.at`."""
        self._enter()
        with moved(self._whole.weights, self._whole.space.split(displacement), 1.0):
            return self._evaluate()

    @property
    def width(self) -> int:
        """See `Batch.width`."""
        return self._whole.comm.ranks if self._engine.parallel else 1

    def products(self, vectors: Tensor) -> Tensor:
        """See `Batch.products`."""
        return self._differences(vectors, lambda gradient: gradient, apart=False)

    def forms(self, frame: Tensor, vectors: Tensor) -> Tensor:
        """See `Batch.forms`."""
        space = self._whole.space
        replicas = not self._whole.access.sharded and self._whole.comm.ranks > 1
        return self._differences(vectors, lambda gradient: space.along(frame, gradient[None])[:, 0], apart=replicas)

    # ---------------------------------------------------------------- inside

    def _differences(self, vectors: Tensor, of: Linear, *, apart: bool) -> Tensor:
        """A linear function of `H v` of each vector; `apart` has it, not the gradient, averaged over replicas."""
        how, comm = self._examined(), self._whole.comm
        if not 1 < len(vectors) <= self.width:
            here = None if how.central else of(self.here)

            def everywhere() -> Tensor:
                found = of(self._evaluate(apart))
                if apart:
                    comm.sum(found)
                    found /= comm.ranks
                return found

            return torch.stack([self._difference(v, everywhere, how, here) for v in vectors])
        mine = comm.rank % len(vectors)
        found = self._difference(vectors[mine], lambda: of(self._evaluate(True)), how, None)
        table = found.new_zeros(len(vectors), *found.shape)
        table[mine] = found / len(range(mine, comm.ranks, len(vectors)))
        comm.sum(table)
        return table

    def _difference(self, v: Tensor, of: Callable[[], Tensor], how: Examined, here: Tensor | None) -> Tensor:
        return FiniteDifference(self._whole.weights, of, self._whole.space, how.step, how.central, here)(v)

    def _examined(self) -> Examined:
        engine, name = self._engine, type(self._engine.method).__name__
        self._enter()
        if engine.examined is None:
            engine.examined = examined(name, self._whole, self._evaluate, self.here, self._half)
            engine.tell(f"{name}: {engine.examined}.")
        return engine.examined

    def _evaluate(self, local: bool = False) -> Tensor:
        gradient = self._enter()
        self._engine.counts.evaluations += 1
        with torch.enable_grad():
            return gradient(local)

    def _enter(self) -> Callable[[bool], Tensor]:
        if self._gradient is None:
            self._kept = [weight.detach().clone() for weight in self._whole.weights]
            self._set(self._whole.space.split(self._start))
            self._open = self._replays()
            self._gradient = self._open.__enter__()
        assert self._gradient is not None
        return self._gradient

    def close(self) -> None:
        """Put the weights where the base has put them."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open, self._gradient = None, None
        if self._kept:
            self._set(self._kept)
            self._kept = []

    @torch.no_grad()
    def _set(self, values: Iterable[Tensor]) -> None:
        for weight, value in zip(self._whole.weights, values, strict=True):
            weight.copy_(value.view(weight.shape))
