"""Online gradient regression: a parabola in a few directions, fitted to gradients that the training has had anyway.

Legend: k directions, n numbers of this rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.contract.vector_method import Owned, Step, VectorState
from lightning_so.errors import check_choice, check_count, check_range
from lightning_so.linalg.frame import orthonormal, turned
from lightning_so.linalg.parabola import regression, strides
from lightning_so.linalg.vectors import Space

CURVATURES = ("regression", "same-batch", "constant")


@dataclass(frozen=True)
class OGR:
    """Step by a regressed parabola inside a few directions, and by the base optimizer outside them.

        m <- m + gamma (g - m),  w^ <- w^ + beta (w - w^),  g^ <- g^ + beta (g - g^)
        V <- orthonormal(v_j + turn g / |g|),   C, D <- R C R', R D R',   R = V_new V_old'
        x = V (w - w^),  y = V (g - g^),   C <- C + beta (x x' - C),   D <- D + beta (y x' - D)
        H C + C H = D + D',   H = U L U'
        u <- u - V'V u - share V'U min(1 / |L|, cap |u| / |g|) U'V m

    With k = 1 the direction is m / |m|: the online parabola. No evaluation is added: right for deterministic training
    and little noise. Under noise the regression of gradients on positions reports l + s^2 / (eta E g^2), about one over
    the learning rate whatever the curvature l is, since a step follows its own noise; in many dimensions and one
    direction even a maximum where there is a minimum. docs/methods/few-directions.md shows it.
    `curvature="same-batch"` feeds the same regression with pairs (v_j, H v_j) of one batch each, one product every so
    many steps, which has no such bias.

    Source: Duda 2019, arXiv 1907.07063 (one direction) and 1901.11457 (several), with the statistics carried when the
    frame turns, a gradient of length one in the turn, and strides relative to the base's.

    Attributes:
        k: Directions; k + 3 vectors are remembered.
        beta: Rate of the running means.
        gamma: Rate of the momentum.
        turn: How far the frame turns towards the gradient each time.
        share: Of the modelled distance, what a step goes.
        cap: Longest step along a direction relative to the base's.
        curvature: "regression"; "same-batch"; or "constant", one mean stride along all directions, to see what
            curvature is worth.
        every: Steps between two products with "same-batch".

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> OGR(k=3).curvature
        'regression'
    """

    k: int = 2
    beta: float = 0.4
    gamma: float = 0.5
    turn: float = 0.1
    share: float = 0.5
    cap: float = 10.0
    curvature: str = "regression"
    every: int = 10

    owns: ClassVar[Owned] = "nothing"

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        check_count(name, "k", self.k, 1, 1000)
        for rate in ("beta", "gamma", "share"):
            check_range(name, rate, getattr(self, rate), 0.0, 1.0)
        check_range(name, "turn", self.turn, 0.0, 10.0)
        check_range(name, "cap", self.cap, 0.0, float("inf"))
        check_choice(name, "curvature", self.curvature, CURVATURES)
        check_count(name, "every", self.every, 1, 1_000_000)

    def refuse(self, space: Space, groups: Sequence[dict]) -> str | None:
        """See `VectorMethod.refuse`."""
        if self.k <= space.dimension:
            return None
        return f"OGR(k={self.k}): there are {space.dimension} numbers to train: k can be at most that."

    def init(self, space: Space) -> VectorState:
        """See `VectorMethod.init`."""
        start = torch.stack([space.normal(row) for row in range(self.k)])
        frame = orthonormal(start, space)
        assert frame.ok, "independent normal vectors"
        vectors = {"V": frame.value, **{name: space.zeros() for name in ("m", "weights", "gradients")}}
        square = torch.zeros(self.k, self.k, dtype=torch.float64)
        counts = {name: torch.zeros((), dtype=torch.int64) for name in ("step", "failed", "products")}
        return VectorState(vectors, {"C": square, "D": square.clone(), "H": square.clone(), **counts})

    def probes(self, number: int) -> bool:
        """See `VectorMethod.probes`."""
        return self.curvature == "same-batch" and number % self.every == 0

    # ---------------------------------------------------------------- one step

    def update(self, state: VectorState, step: Step) -> Tensor | None:
        """See `VectorMethod.update`."""
        vectors, numbers = state.vectors, state.numbers
        first = int(numbers["step"]) == 0
        numbers["step"] += 1
        for name, value, rate in (
            ("m", step.gradient, self.gamma),
            ("weights", step.weights, self.beta),
            ("gradients", step.gradient, self.beta),
        ):
            vectors[name].lerp_(value, 1.0 if first else rate)
        if self.curvature != "same-batch" or self.probes(step.number):
            self._turn(state, step)
            self._learn(state, step)
            numbers["H"].copy_(regression(numbers["C"], numbers["D"]))
        if not bool(numbers["C"].any()):
            return None
        curvatures, U = torch.linalg.eigh(numbers["H"])
        c, a = step.space.along(vectors["V"], torch.stack([vectors["m"], step.update])).cpu().unbind(1)
        longest = strides(curvatures, self.cap * step.rate)
        if self.curvature == "constant":
            longest = torch.full_like(longest, float(longest.mean()))
        slopes = U.mT @ c
        taken = -self.share * (U @ torch.where(slopes == 0, 0.0, longest * slopes))  # inf x 0 is no step.
        return torch.addmv(step.update, vectors["V"].mT, (taken - a).to(vectors["V"]))

    def _turn(self, state: VectorState, step: Step) -> None:
        """Turn the frame towards the gradient, and carry the statistics."""
        V = state.vectors["V"]
        if self.k == 1:
            frame = orthonormal(state.vectors["m"][None], step.space)
        else:
            frame = orthonormal(V + self.turn * step.gradient / step.space.norm(step.gradient), step.space)
        if not frame.ok:
            state.numbers["failed"] += 1
            return
        for name in ("C", "D"):
            state.numbers[name].copy_(turned(state.numbers[name], V, frame.value, step.space))
        V.copy_(frame.value)

    def _learn(self, state: VectorState, step: Step) -> None:
        """Fold pairs of displacements and what they do to the gradient into the statistics."""
        vectors, numbers = state.vectors, state.numbers
        V = vectors["V"]
        if self.curvature == "same-batch":
            first = (step.number // self.every - 1) * step.oracle.width
            rows = [(first + i) % self.k for i in range(min(step.oracle.width, self.k))]
            X = torch.eye(self.k, dtype=torch.float64)[rows]
            Y = step.oracle.forms(V, V[rows]).cpu()
        else:
            moved = torch.stack([step.weights - vectors["weights"], step.gradient - vectors["gradients"]])
            X, Y = step.space.gram(V, moved).cpu().mT.split(1)
        if not bool(Y.isfinite().all()):
            numbers["failed"] += 1
            return
        numbers["C"].lerp_(X.mT @ X, self.beta)
        numbers["D"].lerp_(Y.mT @ X, self.beta)

    def scalars(self, state: VectorState) -> dict[str, float]:
        """See `VectorMethod.scalars`."""
        curvatures = torch.linalg.eigvalsh(state.numbers["H"])
        return {
            "curv/lambda_max": float(curvatures[-1]),
            "curv/lambda_min": float(curvatures[0]),
            "curv/failed": float(state.numbers["failed"]),
        }
