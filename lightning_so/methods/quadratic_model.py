"""Step size and momentum from an exact quadratic model in two directions: the base's step, and the last one taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.core.errors import check_choice, check_count, check_range
from lightning_so.core.vector_method import Step, VectorState
from lightning_so.linalg.frame import orthonormal
from lightning_so.linalg.parabola import strides
from lightning_so.linalg.vectors import Space

CURVATURES = ("measured", "constant")
#: Largest share of the last step that is kept between two looks.
MOST = 0.95


@dataclass(frozen=True)
class QuadraticModel:
    """Take `a u + b last`, where the loss of the batch has its modelled minimum: step size and momentum in one.

        Q = orthonormal(u, last),   M = Q H Q' = U L U',   c = Q g
        a u + b last = -Q'U (|L| + damping)^-1 U'c,   at most `growth` times as long as the longer of u and last

    u is the base's step: of SGD without momentum behind K-FAC, minus the learning rate times the preconditioned
    gradient; its length matters at the first step alone. Two products a look; between two looks a and b stay.

    Source: Martens and Grosse 2015, arXiv 1503.05671, section 7, with the Hessian, |L| and a bound, where there the
    Fisher matrix is positive.

    Attributes:
        every: Steps between two looks.
        damping: Added to the curvatures, in the units of the loss.
        growth: Longest step relative to the last one and to the base's.
        curvature: "measured", or "constant": one mean stride along both, to see what curvature is worth.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> QuadraticModel().every
        1
    """

    every: int = 1
    damping: float = 0.0
    growth: float = 4.0
    curvature: str = "measured"

    products: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        check_count(name, "every", self.every, 1, 1_000_000)
        check_range(name, "damping", self.damping, 0.0, float("inf"))
        check_range(name, "growth", self.growth, 1.0, float("inf"))
        check_choice(name, "curvature", self.curvature, CURVATURES)

    def refuse(self, space: Space, groups: Sequence[dict]) -> str | None:
        """See `VectorMethod.refuse`."""
        if any(group.get("momentum", 0) or "betas" in group for group in groups):
            return (
                "QuadraticModel finds the momentum itself: use SGD with momentum=0 (behind SecondOrder(KFAC()), or "
                "alone), not an optimizer that has its own."
            )
        if space.dimension < 2:
            return "QuadraticModel models two directions, and there is one number to train."
        return None

    def init(self, space: Space) -> VectorState:
        """See `VectorMethod.init`."""
        last = torch.zeros(sum(piece.count for piece in space.pieces), dtype=space.dtype, device=space.device)
        weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
        numbers = {"top": torch.zeros((), dtype=torch.float64), "failed": torch.zeros((), dtype=torch.int64)}
        return VectorState({"last": last}, {"weights": weights, **numbers})

    def probes(self, number: int) -> bool:
        """See `VectorMethod.probes`."""
        return number % self.every == 0

    def update(self, state: VectorState, step: Step) -> Tensor | None:
        """See `VectorMethod.update`."""
        last, numbers = state.vectors["last"], state.numbers
        pair = torch.stack([step.update, last])
        if self.probes(step.number):
            self._look(state, step, pair)
        torch.mv(pair.mT, numbers["weights"].to(last), out=last)
        return last

    def _look(self, state: VectorState, step: Step, pair: Tensor) -> None:
        """Find both weights from the loss at hand."""
        numbers = state.numbers
        frame = orthonormal(pair, step.space)
        Q = frame.value if frame.ok else pair[:1] / step.space.norm(pair[0])
        products = torch.stack([step.batch.product(q) for q in Q])
        found = step.space.gram(Q, torch.cat([products, step.batch.here[None], pair])).cpu()
        count = len(Q)
        M, c, L = found[:, :count], found[:, count], found[:, count + 1 : 2 * count + 1]
        if not bool(found.isfinite().all()):
            numbers["failed"] += 1
            return
        curvatures, U = torch.linalg.eigh((M + M.mT) / 2)
        along = strides(curvatures.abs() + self.damping, float("inf"))
        if self.curvature == "constant":
            along = torch.full_like(along, float(along.mean()))
        taken = -(U @ (along * (U.mT @ c)))
        if not bool(taken.isfinite().all()):
            numbers["failed"] += 1
            return
        taken *= min(1.0, self.growth * float(L.norm(dim=0).max() / taken.norm().clamp(min=1e-300)))
        weights = torch.linalg.solve(L, taken)  # Q' taken = pair' weights, and Q pair' = L.
        numbers["weights"][:count] = weights
        if count == 2 and self.every > 1:
            numbers["weights"][1].clamp_(-MOST, MOST)
        elif count == 1:
            numbers["weights"][1] = 0
        numbers["top"].copy_(curvatures[-1])

    def scalars(self, state: VectorState) -> dict[str, float]:
        """See `VectorMethod.scalars`."""
        numbers = state.numbers
        return {
            "curv/step_factor": float(numbers["weights"][0]),
            "curv/momentum": float(numbers["weights"][1]),
            "curv/lambda_max": float(numbers["top"]),
            "curv/failed": float(numbers["failed"]),
        }
