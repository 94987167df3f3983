"""Newton's step by conjugate gradients: at once, or a few iterations a step, the weights following the iterates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.contract.vector_method import MATRICES, Owned, Step, VectorState
from lightning_so.errors import check_choice, check_count, check_range
from lightning_so.linalg.backtrack import armijo, backtracked
from lightning_so.linalg.cg import Solved, cg
from lightning_so.linalg.levenberg import adapted
from lightning_so.linalg.vectors import Space

#: The damping changes by this factor a step, and never falls below this share of what it was at first.
FACTOR, LEAST = 1.5, 1e-12
#: Two losses that differ by less than this share are of the same batch.
SAME = 1e-6
#: Iterates that are kept to walk back over, and lengths of a step that are tried: of a whole solve, and of a slice.
KEPT, TRIALS, FEW = 8, 20, 3
#: A residual that is farther than this from what the last slice has foretold begins a new solve.
DRIFT = 1.0
JUDGES = ("next", "same")


@dataclass(frozen=True)
class NewtonCG:
    """Take Newton's step of the batch, by conjugate gradients: Hessian-free optimization.

        (B + l I) d = -g,   B = J'HJ (Gauss-Newton: never negative) or the Hessian,   one product with B an iteration

    At once (`slice=0`): from 0.95 of the last solution to Martens' stop, back over the iterates while the loss falls,
    then along d by Armijo's rule. Such a step takes as long as its solve.

    By slices: every step takes `slice` iterations, and the weights follow the iterates, so that no step is slow:

        r = -g(w),   b = max(0, <r, r - r_last> / <r_last, r_last>),   p <- r + b p
        `slice` iterations of conjugate gradients from x = 0 and p,   w <- w + x

    The residual is the training's own gradient and never old; what may be old is p, which is carried from slice to
    slice. On a quadratic without damping the steps are the iterates of one solve. p is dropped after `iterations`, and
    where r is farther from what the last slice has foretold than r is long (as on batches that change). With
    `slice=1` it is Moller's scaled conjugate gradient.

    The damping follows Levenberg and Marquardt: r = (f(w + d) - f(w)) / q(d), q the damped model of the step as it was
    taken, damping included; `r > 3/4: l <- 2/3 l`, `r < 1/4: l <- 3/2 l`, and 3/2 where no step was taken. On the
    batch that has made B and g the model is always right, the smaller the batch the more, and l shrinks to nothing. So
    the *next* step's batch is asked, at w and at w - d: it knows nothing of d. Where the same batch comes again (its
    loss is what it was left at) that is the same number, and costs nothing. Where batches are too small to go on, l
    grows, and the steps shrink.

    With the Hessian, a direction that bends down ends the solve: what there is of it is taken, or, if it is the first,
    that direction, as far as a parabola of the same curvature upwards, damped, has its minimum; and l grows.

    Where the loss at the weights or the first product is not finite no step is taken; of a later product, the iterates
    before it are what was solved. Both are counted in `curv/failed`.

    All evaluations are of one function, dropout and batch statistics included: they see the same random numbers and the
    same batch; running statistics are those of the training alone. g is the gradient of the whole step; where it is
    accumulated, B and the losses are of the last micro-batch (a subsampled Newton method).

    Source: Martens 2010, "Deep learning via Hessian-free optimization"; Martens and Sutskever 2012; Schraudolph 2002
    for B; Moller 1993 for `slice=1`; Polak and Ribiere 1969 for b.

    Attributes:
        curvature: B: "gauss-newton" (losses of known kind) or "hessian" (any, by differences of gradients).
        damping: l at first, in the units of the curvature of the loss; 0 for none at all.
        iterations: Most of one solve.
        slice: Iterations a step; 0 for all at once.
        decay: What is left of the last solution, where the next solve begins; not by slices.
        judge: The batch that judges the damping: "next", or "same" to see what that is worth.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> NewtonCG(slice=5).iterations
        250
    """

    curvature: str = "gauss-newton"
    damping: float = 1.0
    iterations: int = 250
    slice: int = 0
    decay: float = 0.95
    judge: str = "next"

    owns: ClassVar[Owned] = "step"

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        check_choice(name, "curvature", self.curvature, MATRICES)
        check_range(name, "damping", self.damping, 0.0, 1e12)
        check_count(name, "iterations", self.iterations, 1, 1_000_000)
        check_count(name, "slice", self.slice, 0, self.iterations)
        check_range(name, "decay", self.decay, 0.0, 1.0)
        check_choice(name, "judge", self.judge, JUDGES)

    def refuse(self, space: Space, groups: Sequence[dict]) -> str | None:
        """See `VectorMethod.refuse`."""
        return None

    def init(self, space: Space) -> VectorState:
        """See `VectorMethod.init`."""
        names = ("ratio", "foretold", "began", "ended", "residual", "drift", "length")
        numbers = {name: torch.zeros((), dtype=torch.float64) for name in names}
        names = ("moved", "age", "iterations", "negative", "rejected", "failed")
        counts = {name: torch.zeros((), dtype=torch.int64) for name in names}
        damping = torch.tensor(self.damping, dtype=torch.float64)
        names = ("taken", "direction", "before", "rest") if self.slice else ("taken", "last")
        vectors = {name: space.zeros() for name in names}
        return VectorState(vectors, {"damping": damping, **numbers, **counts})

    def probes(self, number: int) -> bool:
        """See `VectorMethod.probes`."""
        return True

    def update(self, state: VectorState, step: Step) -> Tensor | None:
        """See `VectorMethod.update`."""
        numbers = state.numbers
        here = step.oracle.loss()
        if not math.isfinite(here):  # No step could be compared with it.
            return self._withheld(state)
        self._judge(state, step, here)
        found = self._slice(state, step) if self.slice else self._solve(state, step)
        numbers["iterations"].fill_(found.iterations)
        numbers["residual"].fill_(found.residual)
        if found.why == "negative":
            numbers["negative"] += 1
        if not found.ok and not found.iterations:
            return self._withheld(state)
        numbers["failed"] += int(not found.ok)
        self._take(state, step, here, found)
        return state.vectors["taken"]

    def _withheld(self, state: VectorState) -> Tensor:
        """No step, and none to judge the damping by; the next solve begins anew."""
        numbers = state.numbers
        numbers["failed"] += 1
        numbers["damping"].mul_(FACTOR)
        for name in ("moved", "age", "length"):
            numbers[name].zero_()
        return state.vectors["taken"].zero_()

    # ---------------------------------------------------------------- the damping

    def _judge(self, state: VectorState, step: Step, here: float) -> None:
        """Change the damping by what the last step has done to the loss."""
        numbers = state.numbers
        if not int(numbers["moved"]):
            return
        began, ended, foretold = (float(numbers[name]) for name in ("began", "ended", "foretold"))
        if self.judge == "next" and not abs(here - ended) <= SAME * abs(ended):
            began, ended = step.oracle.loss(-state.vectors["taken"]), here
        if not math.isfinite(began):  # The batch says nothing of the step.
            return
        ratio = (ended - began) / foretold if foretold < 0 else -1.0
        numbers["ratio"].fill_(ratio)
        numbers["damping"].fill_(max(adapted(float(numbers["damping"]), ratio, FACTOR), LEAST * self.damping))

    # ---------------------------------------------------------------- the solve

    def _product(self, state: VectorState, step: Step) -> Callable[[Tensor], Tensor]:
        """`v -> (B + l I) v`."""
        damping = float(state.numbers["damping"])
        of = step.oracle.gauss_newton if self.curvature == "gauss-newton" else step.oracle.products
        return lambda v: torch.add(of(v[None])[0], v, alpha=damping)

    def _solve(self, state: VectorState, step: Step) -> Solved:
        """All of it, from the last solution on."""
        last = state.vectors["last"]
        start = last.mul_(self.decay) if self.decay and step.space.norm(last) > 0 else None
        found = cg(
            self._product(state, step),
            -step.gradient,
            step.space,
            steps=self.iterations,
            start=start,
            keep=KEPT,
        )
        # A direction that bends down is no solution.
        last.zero_() if found.why == "negative" and not found.iterations else last.copy_(found.value)
        return found

    def _slice(self, state: VectorState, step: Step) -> Solved:
        """A few iterations, from the last one's direction on."""
        vectors, numbers, space = state.vectors, state.numbers, step.space
        r = -step.gradient
        first = None
        if int(numbers["age"]):
            p, before, rest = (vectors[name] for name in ("direction", "before", "rest"))
            found = space.gram(torch.stack([r, p, before, rest]), torch.stack([r, before, rest])).cpu()
            rr, bottom = float(found[0, 0]), float(found[2, 1])
            apart = max(rr - 2 * float(found[0, 2]) + float(found[3, 2]), 0.0)
            numbers["drift"].fill_(math.sqrt(apart / rr))
            beta = max(0.0, (rr - float(found[0, 1])) / bottom) if bottom > 0 else 0.0
            if apart <= DRIFT**2 * rr and rr + beta * float(found[1, 0]) > 0:
                first = torch.add(r, p, alpha=beta)
        if first is None:
            numbers["age"].zero_()
        found = cg(
            self._product(state, step),
            r,
            space,
            steps=self.slice,
            first=first,
            progress=False,
            keep=1,
        )
        for name in ("direction", "before", "rest"):
            vectors[name].copy_(getattr(found, name))
        if found.iterations:
            # Of the loss without damping, which the next step begins at: -(g + B x).
            vectors["rest"].add_(found.value, alpha=float(numbers["damping"]))
        numbers["age"] += 1
        if found.iterations < self.slice or int(numbers["age"]) * self.slice >= self.iterations:
            numbers["age"].zero_()
        return found

    # ---------------------------------------------------------------- the step

    def _take(self, state: VectorState, step: Step, here: float, found: Solved) -> None:
        """Choose among iterates, and how much of it is taken."""
        numbers, taken, batch, scale = state.numbers, state.vectors["taken"], step.oracle, step.schedule
        damping = float(numbers["damping"])
        if found.iterations or found.why != "negative":
            best, full = backtracked(found.kept, lambda x: batch.loss(scale * x))
            value = best.value
            slope = step.space.dot(step.gradient, value)
            bent = 2 * (best.change - slope)
        else:
            value, full = found.value, None
            slope, length = (step.space.dot(v, value) for v in (step.gradient, value))
            curvature = abs(found.curvature - damping) + damping
            far = -slope / (curvature * length) if curvature * length > 0 else 0.0
            value, slope, bent = value * far, slope * far, -slope * far
        part, ended = armijo(
            lambda a: batch.loss(a * scale * value), here, scale * slope, FEW if self.slice else TRIALS, full
        )
        part *= scale
        torch.mul(value, part, out=taken)
        numbers["length"].fill_(part)
        numbers["began"].fill_(here)
        numbers["ended"].fill_(ended)
        numbers["foretold"].fill_(part * slope + part**2 * bent / 2)
        numbers["moved"].fill_(int(part > 0 and found.why != "negative"))
        if part == 0:
            taken.zero_()
            numbers["rejected"] += int(found.ok)
            numbers["ratio"].fill_(-1.0)
        if part == 0 or found.why == "negative":
            numbers["damping"].mul_(FACTOR)
        if self.slice:
            rest = state.vectors["rest"]
            rest.copy_(torch.lerp(-step.gradient, rest, part))
            if part != scale:
                numbers["age"].zero_()

    def scalars(self, state: VectorState) -> dict[str, float]:
        """See `VectorMethod.scalars`."""
        numbers = state.numbers
        found = {
            "curv/damping": float(numbers["damping"]),
            "curv/reduction_ratio": float(numbers["ratio"]),
            "curv/cg_iterations": float(numbers["iterations"]),
            "curv/residual": float(numbers["residual"]),
            "curv/negative": float(numbers["negative"]),
            "curv/step_length": float(numbers["length"]),
            "curv/rejected": float(numbers["rejected"]),
            "curv/failed": float(numbers["failed"]),
        }
        if self.slice:
            found |= {"curv/age": float(numbers["age"]), "curv/drift": float(numbers["drift"])}
        return found
