"""Few directions: a parabola in a handful of them, measured on the training's own batches; the base does the rest.

Legend: k directions, n numbers of this rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.contract.vector_method import CURVATURES, Owned, Step, VectorState
from lightning_so.errors import check_choice, check_count, check_range
from lightning_so.linalg.frame import beside
from lightning_so.linalg.parabola import strides
from lightning_so.linalg.vectors import Space


@dataclass(frozen=True)
class FewDirections:
    """Step by a parabola inside a few directions, and by the base optimizer outside them.

        M = V H V' = U L U',   c = V g
        u <- u - V'V u - share V'U min(1 / |L|, cap |u| / |g|) U'c

    V has orthonormal rows: the directions of the largest curvature and of the most negative one, the last update, a
    slow momentum, and with k > 4 more of large curvature. Every so many steps one of them, in turn, is brought up to
    date and multiplied with the Hessian of the batch at hand, so that no product is older than k x every steps; those
    of extreme curvature go on from the best that the products of all rows say, in the plane of it and the rest of its
    product. Along L > 0 a step goes to the minimum of the parabola, along L < 0 away from its maximum, as far as that
    is; where there is little curvature, at most `cap` times as far as the base would.

    For deterministic or low-noise training, few sharp directions that change slowly, and saddles. On minibatches a
    tuned first-order optimizer is as good: see docs/methods/few-directions.md for what was measured.

    Source: the saddle-free step: Dauphin et al. 2014, arXiv 1406.2572; in few directions: Duda 2019, arXiv 1907.07063.

    Attributes:
        k: Directions; k vectors, their k products and the momentum are remembered.
        every: Steps between two products.
        share: Of the modelled distance, what a step goes.
        cap: Longest step along a direction relative to the base's.
        momentum: Decay of the slow momentum.
        curvature: "measured", or "constant": one mean stride along all directions, to see what curvature is worth.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> FewDirections(k=2).every
        10
    """

    k: int = 5
    every: int = 10
    share: float = 0.5
    cap: float = 10.0
    momentum: float = 0.99
    curvature: str = "measured"

    owns: ClassVar[Owned] = "nothing"

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        check_count(name, "k", self.k, 1, 1000)
        check_count(name, "every", self.every, 1, 1_000_000)
        check_range(name, "share", self.share, 0.0, 1.0)
        check_range(name, "cap", self.cap, 0.0, float("inf"))
        check_range(name, "momentum", self.momentum, 0.0, 1.0, closed=False)
        check_choice(name, "curvature", self.curvature, CURVATURES)

    def refuse(self, space: Space, groups: Sequence[dict]) -> str | None:
        """See `VectorMethod.refuse`."""
        if self.k <= space.dimension:
            return None
        return f"FewDirections(k={self.k}): there are {space.dimension} numbers to train: k can be at most that."

    def init(self, space: Space) -> VectorState:
        """See `VectorMethod.init`."""
        numbers = {
            "M": torch.zeros(self.k, self.k, dtype=torch.float64),
            # The step of each row's product; -1 before the first.
            "measured": torch.full((self.k,), -1),
            "failed": torch.zeros((), dtype=torch.int64),
            "step": torch.zeros((), dtype=torch.int64),
            "distance": torch.zeros((), dtype=torch.float64),
        }
        vectors = {"V": space.zeros(self.k), "HV": space.zeros(self.k), "momentum": space.zeros()}
        return VectorState(vectors, numbers)

    @property
    def roles(self) -> list[str]:
        """What each row is."""
        first = ["top", "bottom", "update", "momentum"][: self.k]
        return first + ["top"] * (self.k - len(first))

    def probes(self, number: int) -> bool:
        """See `VectorMethod.probes`."""
        return number % self.every == 0

    # ---------------------------------------------------------------- one step

    def update(self, state: VectorState, step: Step) -> Tensor | None:
        """See `VectorMethod.update`."""
        V, numbers = state.vectors["V"], state.numbers
        numbers["step"].fill_(step.number)
        state.vectors["momentum"].lerp_(step.gradient, 1 - self.momentum)
        if self.probes(step.number):
            self._measure(state, step)
        if not bool((numbers["measured"] >= 0).any()):
            return None
        curvatures, U = torch.linalg.eigh(numbers["M"])
        c, a = step.space.along(V, step.moves).cpu().unbind(1)
        longest = strides(curvatures, self.cap * step.rate)
        if self.curvature == "constant":
            longest = torch.full_like(longest, float(longest.mean()))
        slopes = U.mT @ c
        numbers["distance"].copy_((slopes[-1] / curvatures[-1]).abs().nan_to_num(0.0))
        taken = -self.share * (U @ torch.where(slopes == 0, 0.0, longest * slopes))  # inf x 0 is no step.
        return step.update.addmv_(V.mT, (taken - a).to(V))

    def _measure(self, state: VectorState, step: Step) -> None:
        """Bring the rows whose turn it is up to date, and take their products."""
        V, HV, numbers = state.vectors["V"], state.vectors["HV"], state.numbers
        width = min(step.oracle.width, self.k)
        first = (step.number // self.every - 1) * width
        rows = [(first + i) % self.k for i in range(width)]
        last, candidates = V[rows], [self._candidate(row, state, step) for row in rows]
        V[rows] = 0  # They do not count beside which the others are found.
        for row, before, candidate in zip(rows, last, candidates, strict=True):
            V[row] = self._directed(row, before, candidate, state, step)
        products = step.oracle.products(V[rows])
        forms = step.space.along(products, V).cpu()
        if not bool(forms.isfinite().all()):
            numbers["failed"] += 1
            V[rows] = last
            return
        HV[rows] = products
        numbers["M"][rows], numbers["M"][:, rows] = forms, forms.mT
        numbers["measured"][rows] = step.number

    def _directed(self, row: int, before: Tensor, candidate: Tensor, state: VectorState, step: Step) -> Tensor:
        """What a row is now, beside the others."""
        V = state.vectors["V"]
        v = beside(V, candidate, step.space)
        if v is None and int(state.numbers["measured"][row]) >= 0:
            v = beside(V, before, step.space)  # Nothing new: the same again, at these weights.
        if v is None:
            v = beside(V, step.space.normal(row, step.number), step.space)
        assert v is not None, "an independent normal vector"
        return v

    def _candidate(self, row: int, state: VectorState, step: Step) -> Tensor:
        """The direction that a row should have now."""
        role, V, HV = self.roles[row], state.vectors["V"], state.vectors["HV"]
        if role == "update":
            return step.update
        if role == "momentum":
            return state.vectors["momentum"]
        if not bool((state.numbers["measured"] >= 0).any()):
            return step.space.normal(row, step.number)
        curvatures, U = torch.linalg.eigh(state.numbers["M"])
        number = 0 if role == "bottom" else self.k - 1 - self.roles[:row].count("top")
        s, curvature = U[:, number].to(V), float(curvatures[number])
        x = s @ V
        rest = s @ HV - curvature * x
        length = step.space.norm(rest)
        # The extreme direction of the plane of x and the rest of its product: of the rest's own curvature nothing is
        # known, and most directions of a network have about none.
        plane = torch.tensor([[curvature, length], [length, 0.0]], dtype=torch.float64)
        a, b = torch.linalg.eigh(plane)[1][:, 0 if role == "bottom" else 1].tolist()
        return a * x + b / (length or 1.0) * rest

    def scalars(self, state: VectorState) -> dict[str, float]:
        """See `VectorMethod.scalars`."""
        numbers = state.numbers
        curvatures = torch.linalg.eigvalsh(numbers["M"])
        measured = numbers["measured"][numbers["measured"] >= 0]
        return {
            "curv/lambda_max": float(curvatures[-1]),
            "curv/lambda_min": float(curvatures[0]),
            "curv/distance": float(numbers["distance"]),
            "curv/age": float(numbers["step"] - measured.min()) if len(measured) else 0.0,
            "curv/failed": float(numbers["failed"]),
        }
