"""What can be asked of a step's loss, answered by evaluations of its batch around the weights that it began with."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_so.contract.vector_method import Oracle
from lightning_so.core.vector.memory import Memory
from lightning_so.core.vector.rewound import Replays, Rewound
from lightning_so.errors import ConfigError
from lightning_so.linalg.least_squares import Residuals
from lightning_so.linalg.products import LEAST, STEPS, FiniteDifference, moved
from lightning_so.losses.terms import Overheard, Pulled, Term, lasts, predictions, terms
from lightning_so.probe.difference import ProductChoice, choose_product
from lightning_so.probe.double_backward import AGAIN, Exact, exact, way_out
from lightning_so.probe.parameters import ParameterVector
from lightning_so.probe.residuals import of_all_ranks, residuals

#: Steps of central differences of predictions in half precision: larger ones bend, smaller ones are rounding.
HALF = 1e-2


#: What is wanted of a gradient: all of it, or some linear function.
Linear = Callable[[Tensor], Tensor]


class BatchOracle(Oracle):
    """A step's last micro-batch, evaluated again: at the weights before the step, and beside them."""

    def __init__(
        self,
        memory: Memory,
        vector: ParameterVector,
        model: nn.Module,
        replays: Replays,
        start: Tensor,
        here: Tensor | None,
        half: bool,
    ) -> None:
        """Remember where things are.

        Args:
            memory: How evaluations are made; counts them.
            vector: The parameters.
            model: The model as it is wrapped.
            replays: See there.
            start: The weights before the step, shape (n,).
            here: The gradient there, if it is that of one batch.
            half: Whether gradients are computed in half precision.
        """
        self._memory, self._vector, self._model, self._half = memory, vector, model, half
        self._rewound = Rewound(vector, replays, start, memory.counts)
        self._start, self._here, self._name = start, here, memory.name
        self._terms: tuple[Tensor, list[Term], bool] | None = None
        self._graph: Exact | None = None
        self._how: ProductChoice | None = None  # Of this step alone, where it has not said how products are taken.

    @property
    def here(self) -> Tensor:
        """See `Oracle.here`."""
        if self._here is None:
            self._here = self._rewound.gradient()
        return self._here

    def at(self, displacement: Tensor) -> Tensor:
        """See `Oracle.at`."""
        self._rewound.again()
        with moved(self._vector.weights, self._vector.space.split(displacement), 1.0):
            return self._rewound.gradient()

    @property
    def width(self) -> int:
        """See `Oracle.width`."""
        return self._vector.comm.ranks if self._memory.parallel else 1

    def products(self, vectors: Tensor) -> Tensor:
        """See `Oracle.products`."""
        return self._linear(vectors, lambda product: product, apart=False)

    def forms(self, frame: Tensor, vectors: Tensor) -> Tensor:
        """See `Oracle.forms`."""
        space = self._vector.space
        replicas = not self._vector.access.sharded and self._vector.comm.ranks > 1
        return self._linear(vectors, lambda product: space.along(frame, product[None])[:, 0], apart=replicas)

    def loss(self, displacement: Tensor | None = None) -> float:
        """See `Oracle.loss`."""
        total = self._rewound.beside(displacement, lambda loss: loss.detach().double().reshape(1))
        self._vector.comm.sum(total)
        found = float(total) / self._vector.comm.ranks
        self._memory.counts.unusable += not math.isfinite(found)
        return found

    def gauss_newton(self, vectors: Tensor) -> Tensor:
        """See `Oracle.gauss_newton`."""
        return torch.stack([self._gauss_newton(v) for v in vectors])

    def residuals(self) -> Residuals:
        """See `Oracle.residuals`."""
        vector = self._vector
        if vector.access.sharded:
            raise ConfigError(
                f"{self._name} needs the Jacobian of whole parameters, and ranks hold pieces of them: it is for small "
                f"models, so use one process or strategy='ddp'; NewtonCG(curvature='hessian') works on pieces."
            )
        self._same_again()
        with torch.enable_grad():
            mine = residuals(lambda: self._rewound.again().loss(True), vector.params, self._name)
        return of_all_ranks(mine, vector.comm)

    # ---------------------------------------------------------------- inside

    def _linear(self, vectors: Tensor, of: Linear, *, apart: bool) -> Tensor:
        """A linear function of `H v` of each vector; `apart` has it, not the gradient, averaged over replicas."""
        how, comm = self._choice(), self._vector.comm
        if not 1 < len(vectors) <= self.width:
            if how.exact:
                return torch.stack([self._averaged(of(self._doubled(v))) for v in vectors])
            here = None if how.central else of(self.here)

            def everywhere() -> Tensor:
                found = of(self._rewound.gradient(apart))
                return self._averaged(found) if apart else found

            return torch.stack([self._difference(v, everywhere, how, here) for v in vectors])
        mine = comm.rank % len(vectors)
        if how.exact:
            found = of(self._doubled(vectors[mine]))
        else:
            found = self._difference(vectors[mine], lambda: of(self._rewound.gradient(True)), how, None)
        table = found.new_zeros(len(vectors), *found.shape)
        table[mine] = found / len(range(mine, comm.ranks, len(vectors)))
        comm.sum(table)
        return table

    def _difference(self, v: Tensor, of: Callable[[], Tensor], how: ProductChoice, here: Tensor | None) -> Tensor:
        return FiniteDifference(self._vector.weights, of, self._vector.space, how.step, how.central, here)(v)

    def _averaged(self, part: Tensor) -> Tensor:
        comm = self._vector.comm
        comm.sum(part)
        return part.div_(comm.ranks)

    def _doubled(self, v: Tensor) -> Tensor:
        """`H v` of this rank's part of the batch, by double backward; the time of two evaluations."""
        assert self._graph is not None
        self._memory.counts.evaluations += 2
        return self._graph.mine(v)

    def _choice(self) -> ProductChoice:
        """How products are taken; by double backward there is a graph then, kept for all products of the step."""
        memory, known = self._memory, self._memory.examined or self._how
        self._rewound.again()
        reason, sure = "", self._how is None
        if (known is None or known.exact) and memory.product != "difference" and self._graph is None:
            reason = self._draw(probe=known is None)
            sure = self._graph is None or self._graph.compared or known is not None
            known = None if reason else ProductChoice(0.0, False, "exact", memory.product, True)
        if known is None:
            known = choose_product(self._name, self._vector, self._rewound.gradient, self.here, self._half)
            sure = known.sure
            why = known.why + f"; there is no double backward here, {reason}" * bool(reason)
            known = replace(known, asked=memory.product, why=why)
        if not sure:
            memory.counts.unusable += self._how is None
            self._how = known
        elif memory.examined != known:
            memory.examined = known
            memory.tell(f"{self._name}: {known}.")
        return known

    def _draw(self, probe: bool) -> str:
        """Make the graph of this step's gradient; or why there is none."""
        again = self._rewound.again()
        self._memory.counts.evaluations += 1 + 3 * probe
        with torch.enable_grad():
            found = exact(self._vector, self._model, lambda: again.loss(True), probe=probe)
        if isinstance(found, Exact):
            self._graph = found
            return ""
        if self._memory.product == "exact":
            raise ConfigError(f"{self._name}: {way_out(found)}")
        return found

    def _gauss_newton(self, v: Tensor) -> Tensor:
        """`J'H (f(w + e v) - f(w)) / e`: the predictions twice, or three times, and one backward pass."""
        vector, memory = self._vector, self._memory
        length = vector.space.norm(v)
        if length == 0:
            return torch.zeros_like(v)
        size = (HALF if self._half else STEPS[v.dtype]) * (vector.space.norm(self._start) + LEAST) / length
        beyond = self._predictions(size * v)
        before = self._predictions(-size * v) if self._half else None
        loss, here, lasting = self._read()
        ends = [term.values for term in here] if before is None else before
        far = size if before is None else 2 * size
        sent = [t.curved((there - back) / far) for t, there, back in zip(here, beyond, ends, strict=True)]
        memory.counts.evaluations += 1
        with torch.enable_grad():
            if not lasting:
                return vector.gradient(lambda: self._pulled(self._rewound.again().loss(False), sent))
            product = vector.gradient(lambda: Pulled(loss, [term.head for term in here], sent, retain=True))
        return self._averaged(product)

    def _pulled(self, loss: Tensor, gradients: list[Tensor]) -> Pulled:
        return Pulled(loss, predictions(loss, self._name), gradients)

    def _predictions(self, displacement: Tensor) -> list[Tensor]:
        return self._rewound.beside(displacement, lambda loss: [head.values for head in predictions(loss, self._name)])

    def _read(self) -> tuple[Tensor, list[Term], bool]:
        """The loss at the weights, its terms, and whether its graph lasts for all products, or for one pass."""
        if self._terms is None:
            self._same_again()
            if self._vector.access.sharded:
                loss, heard = self._rewound.beside(None, lambda loss: (loss, Overheard(loss, self._name)))
                self._terms = loss, heard.terms(), False
            else:
                self._terms = self._rewound.beside(None, lambda loss: (loss, terms(loss, self._name), lasts(loss)))
        return self._terms

    def _same_again(self) -> None:
        """Refuse a training step that is another each time; seen once."""
        memory = self._memory
        if memory.repeats:
            return
        one, other = self.loss(), self.loss()
        if not math.isfinite(one - other):  # It cannot be said; the next step is asked.
            return
        if abs(one - other) > AGAIN * abs(one):
            raise ConfigError(
                f"{self._name}: the same training step twice, with the same batch, weights and random numbers, gave "
                f"losses {one:.6g} and {other:.6g}: it remembers something (an attribute that it writes, a generator "
                f"of its own), and what is computed from both is of neither."
            )
        memory.repeats = True

    @property
    def evaluated(self) -> bool:
        """Whether anything was, so that weights have been moved."""
        return self._rewound.evaluated

    def close(self) -> None:
        """Put the weights where the base has put them."""
        self._rewound.close()
        self._terms, self._graph = None, None
