"""Step size and momentum from an exact quadratic model in two directions: the base's step, and the last one taken."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.contract.vector_method import CURVATURES, Owned, Step, VectorState
from lightning_so.errors import check_choice, check_count, check_range
from lightning_so.linalg.frame import orthonormal
from lightning_so.linalg.levenberg import adapted
from lightning_so.linalg.parabola import strides
from lightning_so.linalg.vectors import Space

#: The damping changes by this factor a step.
FACTOR = 20 / 19


@dataclass(frozen=True)
class QuadraticModel:
    """Take `a u + b last`, where the loss of the batch has its modelled minimum: step size and momentum in one.

        Q = orthonormal(u, last),   M = Q H Q' = U L U',   c = Q g
        a u + b last = Q'z,   z = -U (|L| + l)^-1 U'c,   at most `growth` times as long as the longer of u and last
        r = (<g(w), Q'z> + <g(w + Q'z), Q'z>) / 2 / (c'z + z'(M + l) z / 2)
        r > 3/4: l <- (19/20)^adapt l;   r < 1/4: l <- (20/19)^adapt l          (Levenberg and Marquardt)

    u is the base's step: of SGD without momentum behind K-FAC, minus the learning rate times the preconditioned
    gradient; its length matters at the first step alone. l is the damping of K-FAC's factors as well, where
    `SecondOrder(KFAC())` or `SecondOrder(EKFAC())` stands before it, whatever theirs says. Two products a step; the
    change of the loss in r is had from its slopes at both ends, one evaluation. Where a product is not finite a and b
    are those of the step before; where the gradient at the step's end is not, no step is taken, and l rises. Both are
    counted in `curv/failed`.

    Source: Martens and Grosse 2015, arXiv 1503.05671, sections 6.5 and 7, with the Hessian, |L| and a bound, where
    there the Fisher matrix is positive.

    Attributes:
        initial: l at first, in the units of the curvature of the loss.
        adapt: Steps between two changes of l; 0 for never.
        growth: Longest step relative to the last one and to the base's.
        curvature: "measured", or "constant": one mean stride along both, to see what curvature is worth.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> QuadraticModel().adapt
        5
    """

    initial: float = 0.1
    adapt: int = 5
    growth: float = 4.0
    curvature: str = "measured"

    owns: ClassVar[Owned] = "nothing"

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        check_range(name, "initial", self.initial, 0.0, 1e12)
        check_count(name, "adapt", self.adapt, 0, 1_000_000)
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
        numbers = {name: torch.zeros((), dtype=torch.float64) for name in ("top", "ratio")}
        counts = {name: torch.zeros((), dtype=torch.int64) for name in ("failed", "looks")}
        weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
        damping = torch.tensor(self.initial, dtype=torch.float64)
        return VectorState({"last": space.zeros()}, {"weights": weights, "damping": damping, **numbers, **counts})

    def probes(self, number: int) -> bool:
        """See `VectorMethod.probes`."""
        return True

    def update(self, state: VectorState, step: Step) -> Tensor | None:
        """See `VectorMethod.update`."""
        last, numbers = state.vectors["last"], state.numbers
        pair = torch.stack([step.update, last])
        predicted = self._look(state, step, pair)
        torch.mv(pair.mT, numbers["weights"].to(last), out=last)
        if predicted is not None and self.adapt and int(numbers["looks"]) % self.adapt == 0:
            self._adapt(state, step, predicted)
        return last

    def _look(self, state: VectorState, step: Step, pair: Tensor) -> float | None:
        """Find both weights from the loss at hand; gives the change of the damped model, if all was finite."""
        numbers = state.numbers
        frame = orthonormal(pair, step.space)
        Q = frame.value if frame.ok else pair[:1] / step.space.norm(pair[0])
        products = step.oracle.products(Q)
        found = step.space.gram(Q, torch.cat([products, step.oracle.here[None], pair])).cpu()
        count = len(Q)
        M, c, L = found[:, :count], found[:, count], found[:, count + 1 :]
        curvatures, U = torch.linalg.eigh((M + M.mT).nan_to_num() / 2)
        damped = curvatures.abs() + numbers["damping"]
        along = strides(damped, float("inf"))
        if self.curvature == "constant":
            along = torch.full_like(along, float(along.mean()))
        z = -(U @ (along * (U.mT @ c)))
        z *= min(1.0, self.growth * float(L.norm(dim=0).max() / z.norm().clamp(min=1e-300)))
        if not bool(found.isfinite().all() and z.isfinite().all()):
            numbers["failed"] += 1
            return None
        # Q'z = pair' weights, and Q pair' = L: triangular, with a positive diagonal.
        numbers["weights"].zero_()[:count] = torch.linalg.solve(L[:, :count], z)
        numbers["looks"] += 1
        numbers["top"].copy_(curvatures[-1])
        return float(c @ z + 0.5 * (U.mT @ z).square() @ damped)

    def _adapt(self, state: VectorState, step: Step, predicted: float) -> None:
        """Change the damping by how well the model has foretold."""
        numbers, taken = state.numbers, state.vectors["last"]
        ends = torch.stack([step.oracle.here, step.oracle.at(taken)])
        ratio = float(step.space.gram(taken[None], ends).mean()) / predicted if predicted else 0.0
        if not math.isfinite(ratio):
            numbers["failed"] += 1
            taken.zero_()
            ratio = -1.0
        numbers["ratio"].fill_(ratio)
        numbers["damping"].fill_(adapted(float(numbers["damping"]), ratio, FACTOR**self.adapt))

    def scalars(self, state: VectorState) -> dict[str, float]:
        """See `VectorMethod.scalars`."""
        numbers = state.numbers
        return {
            "curv/step_factor": float(numbers["weights"][0]),
            "curv/momentum": float(numbers["weights"][1]),
            "curv/lambda_max": float(numbers["top"]),
            "curv/damping": float(numbers["damping"]),
            "curv/reduction_ratio": float(numbers["ratio"]),
            "curv/failed": float(numbers["failed"]),
        }
