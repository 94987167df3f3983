"""Evaluations of a step's batch around the weights that the step began with."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_so.contract.vector_method import Batch
from lightning_so.core.vector.rewound import Again, Replays, T
from lightning_so.errors import ConfigError
from lightning_so.linalg.least_squares import Residuals
from lightning_so.linalg.products import LEAST, STEPS, FiniteDifference, moved
from lightning_so.losses.terms import Overheard, Pulled, Term, lasts, predictions, terms
from lightning_so.probe.difference import Examined, examined
from lightning_so.probe.double_backward import AGAIN, Exact, exact, way_out
from lightning_so.probe.residuals import of_all_ranks, residuals

if TYPE_CHECKING:
    from lightning_so.core.vector.engine import VectorEngine


#: Steps of central differences of predictions in half precision: larger ones bend, smaller ones are rounding.
HALF = 1e-2


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
        self._start, self._here, self._name = start, here, type(engine.method).__name__
        self._kept: list[Tensor] = []
        self._open: AbstractContextManager[Any] | None = None
        self._again: Again | None = None
        self._opened = False
        self._terms: tuple[Tensor, list[Term], bool] | None = None
        self._graph: Exact | None = None

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
        return self._linear(vectors, lambda product: product, apart=False)

    def forms(self, frame: Tensor, vectors: Tensor) -> Tensor:
        """See `Batch.forms`."""
        space = self._whole.space
        replicas = not self._whole.access.sharded and self._whole.comm.ranks > 1
        return self._linear(vectors, lambda product: space.along(frame, product[None])[:, 0], apart=replicas)

    def loss(self, displacement: Tensor | None = None) -> float:
        """See `Batch.loss`."""
        total = self._beside(displacement, lambda loss: loss.detach().double().reshape(1))
        self._whole.comm.sum(total)
        return float(total) / self._whole.comm.ranks

    def gauss_newton(self, vectors: Tensor) -> Tensor:
        """See `Batch.gauss_newton`."""
        return torch.stack([self._gauss_newton(v) for v in vectors])

    def residuals(self) -> Residuals:
        """See `Batch.residuals`."""
        whole = self._whole
        if whole.access.sharded:
            raise ConfigError(
                f"{self._name} needs the Jacobian of whole parameters, and ranks hold pieces of them: it is for small "
                f"models, so use one process or strategy='ddp'; NewtonCG(curvature='hessian') works on pieces."
            )
        self._same_again()
        with torch.enable_grad():
            mine = residuals(lambda: self._enter().loss(True), whole.params, self._name)
        return of_all_ranks(mine, whole.comm)

    # ---------------------------------------------------------------- inside

    def _linear(self, vectors: Tensor, of: Linear, *, apart: bool) -> Tensor:
        """A linear function of `H v` of each vector; `apart` has it, not the gradient, averaged over replicas."""
        how, comm = self._examined(), self._whole.comm
        if not 1 < len(vectors) <= self.width:
            if how.exact:
                return torch.stack([self._averaged(of(self._doubled(v))) for v in vectors])
            here = None if how.central else of(self.here)

            def everywhere() -> Tensor:
                found = of(self._evaluate(apart))
                return self._averaged(found) if apart else found

            return torch.stack([self._difference(v, everywhere, how, here) for v in vectors])
        mine = comm.rank % len(vectors)
        if how.exact:
            found = of(self._doubled(vectors[mine]))
        else:
            found = self._difference(vectors[mine], lambda: of(self._evaluate(True)), how, None)
        table = found.new_zeros(len(vectors), *found.shape)
        table[mine] = found / len(range(mine, comm.ranks, len(vectors)))
        comm.sum(table)
        return table

    def _difference(self, v: Tensor, of: Callable[[], Tensor], how: Examined, here: Tensor | None) -> Tensor:
        return FiniteDifference(self._whole.weights, of, self._whole.space, how.step, how.central, here)(v)

    def _averaged(self, part: Tensor) -> Tensor:
        comm = self._whole.comm
        comm.sum(part)
        return part.div_(comm.ranks)

    def _doubled(self, v: Tensor) -> Tensor:
        """`H v` of this rank's part of the batch, by double backward; the time of two evaluations."""
        assert self._graph is not None
        self._engine.counts.evaluations += 2
        return self._graph.mine(v)

    def _examined(self) -> Examined:
        """How products are taken; by double backward there is a graph then, kept for all products of the step."""
        engine, known = self._engine, self._engine.examined
        self._enter()
        reason = ""
        if (known is None or known.exact) and engine.product != "difference" and self._graph is None:
            reason = self._draw(probe=known is None)
            known = None if reason else Examined(0.0, False, "exact", engine.product, True)
        if known is None:
            known = examined(self._name, self._whole, self._evaluate, self.here, self._half)
            why = known.why + f"; there is no double backward here, {reason}" * bool(reason)
            known = replace(known, asked=engine.product, why=why)
        if engine.examined != known:
            engine.examined = known
            engine.tell(f"{self._name}: {known}.")
        return known

    def _draw(self, probe: bool) -> str:
        """Make the graph of this step's gradient; or why there is none."""
        again = self._enter()
        self._engine.counts.evaluations += 1 + 3 * probe
        with torch.enable_grad():
            found = exact(self._whole, self._engine.model, lambda: again.loss(True), probe=probe)
        if isinstance(found, Exact):
            self._graph = found
            return ""
        if self._engine.product == "exact":
            raise ConfigError(f"{self._name}: {way_out(found)}")
        return found

    def _gauss_newton(self, v: Tensor) -> Tensor:
        """`J'H (f(w + e v) - f(w)) / e`: the predictions twice, or three times, and one backward pass."""
        whole, engine = self._whole, self._engine
        length = whole.space.norm(v)
        if length == 0:
            return torch.zeros_like(v)
        size = (HALF if self._half else STEPS[v.dtype]) * (whole.space.norm(self._start) + LEAST) / length
        beyond = self._predictions(size * v)
        before = self._predictions(-size * v) if self._half else None
        loss, here, lasting = self._read()
        ends = [term.values for term in here] if before is None else before
        far = size if before is None else 2 * size
        sent = [t.curved((there - back) / far) for t, there, back in zip(here, beyond, ends, strict=True)]
        engine.counts.evaluations += 1
        with torch.enable_grad():
            if not lasting:
                return whole.gradient(lambda: self._pulled(self._enter().loss(False), sent))
            product = whole.gradient(lambda: Pulled(loss, [term.head for term in here], sent, retain=True))
        return self._averaged(product)

    def _pulled(self, loss: Tensor, gradients: list[Tensor]) -> Pulled:
        return Pulled(loss, predictions(loss, self._name), gradients)

    def _predictions(self, displacement: Tensor) -> list[Tensor]:
        return self._beside(displacement, lambda loss: [head.values for head in predictions(loss, self._name)])

    def _read(self) -> tuple[Tensor, list[Term], bool]:
        """The loss at the weights, its terms, and whether its graph lasts for all products, or for one pass."""
        if self._terms is None:
            self._same_again()
            if self._whole.access.sharded:
                loss, heard = self._beside(None, lambda loss: (loss, Overheard(loss, self._name)))
                self._terms = loss, heard.terms(), False
            else:
                self._terms = self._beside(None, lambda loss: (loss, terms(loss, self._name), lasts(loss)))
        return self._terms

    def _beside(self, displacement: Tensor | None, read: Callable[[Tensor], T]) -> T:
        """What there is to read in the graph of this rank's loss beside the weights."""
        again, whole, counts = self._enter(), self._whole, self._engine.counts
        moves = None if displacement is None else moved(whole.weights, whole.space.split(displacement), 1.0)
        with torch.enable_grad(), moves or nullcontext():
            if not whole.access.sharded:
                counts.forwards += 1
                return read(again.loss(True))
            # A forward pass alone leaves gathered weights behind, of which the next one would be: go back too.
            counts.evaluations += 1
            found = []

            def loss() -> Tensor:
                value = again.loss(False)
                found.append(read(value))
                return value

            whole.gradient(loss)
        return found[0]

    def _same_again(self) -> None:
        """Refuse a training step that is another each time; seen once."""
        engine = self._engine
        if engine.repeats:
            return
        one, other = self.loss(), self.loss()
        if abs(one - other) > AGAIN * abs(one):
            raise ConfigError(
                f"{self._name}: the same training step twice, with the same batch, weights and random numbers, gave "
                f"losses {one:.6g} and {other:.6g}: it remembers something (an attribute that it writes, a generator "
                f"of its own), and what is computed from both is of neither."
            )
        engine.repeats = True

    def _evaluate(self, local: bool = False) -> Tensor:
        again = self._enter()
        self._engine.counts.evaluations += 1
        with torch.enable_grad():
            return again.gradient(local)

    def _enter(self) -> Again:
        if self._again is None:
            self._kept = [weight.detach().clone() for weight in self._whole.weights]
            self._set(self._whole.space.split(self._start))
            self._open = self._replays()
            self._again, self._opened = self._open.__enter__(), True
        assert self._again is not None
        return self._again

    @property
    def evaluated(self) -> bool:
        """Whether anything was, so that weights have been moved."""
        return self._opened

    def close(self) -> None:
        """Put the weights where the base has put them."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open, self._again, self._terms, self._graph = None, None, None, None
        if self._kept:
            self._set(self._kept)
            self._kept = []

    @torch.no_grad()
    def _set(self, values: Iterable[Tensor]) -> None:
        for weight, value in zip(self._whole.weights, values, strict=True):
            weight.copy_(value.view(weight.shape))
