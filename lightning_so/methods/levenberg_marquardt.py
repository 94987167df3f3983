"""Levenberg and Marquardt with a dense Jacobian: full-batch least squares with up to some thousand weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.contract.vector_method import Owned, Step, VectorState
from lightning_so.errors import check_count, check_range
from lightning_so.linalg.least_squares import DampedLeastSquares
from lightning_so.linalg.levenberg import smoothed
from lightning_so.linalg.vectors import Space

#: Most weights: the Jacobian has as many columns.
MOST = 20_000
#: The least damping that is raised: from none at all no factor leads away.
LEAST = 1e-16


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Take the damped Gauss-Newton step of a sum of squares, and accept it if the loss falls.

        loss = |r(w)|^2 / 2,   J = dr/dw,   d = -(J'J + l)^-1 J'r
        ratio = (loss(w + d) - loss(w)) / (the damped model's change)
        ratio > 0: w <- w + d, l <- l max(1/3, 1 - (2 ratio - 1)^3);   else l <- 2 l, then 4 times, 8 times ... as much

    The residuals r and the weights of their squares are read in the graph of the loss: any sum of `mse_loss`,
    `r.square()`, `r ** 2` or `r * r` with positive weights, of predictions or of derivatives of them (as of a
    physics-informed network). J is had in one backward pass for all samples where linear layers treat samples apart,
    which is checked at every step; otherwise residual by residual. The matrix that is factored has the smaller of both
    sides of J. Where r or J is not finite no step is taken, l stays, and `curv/failed` counts it; a trial whose loss is
    not finite is one that has not fallen. All of it is of one batch: give it all data in one (full batch). Works in one
    process and under DDP.

    The optimizer is SGD without momentum; its learning rate does not matter, but a schedule of it scales steps.

    Source: Levenberg 1944; Marquardt 1963; the rule for l: Nielsen 1999.

    Attributes:
        initial: l at first, relative to the mean eigenvalue of the smaller of `J J'` and `J'J`.
        trials: Dampings that are tried in one step at most; each costs a factorization and a forward pass.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> LevenbergMarquardt().trials
        10
    """

    initial: float = 1e-2
    trials: int = 10

    owns: ClassVar[Owned] = "step"

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        check_range(name, "initial", self.initial, 0.0, 1e12)
        check_count(name, "trials", self.trials, 1, 1000)

    def refuse(self, space: Space, groups: Sequence[dict]) -> str | None:
        """See `VectorMethod.refuse`."""
        if space.dimension <= MOST:
            return None
        return (
            f"LevenbergMarquardt has a Jacobian with a column a weight, and there are {space.dimension:,}; allowed are "
            f"{MOST:,}. Use NewtonCG(), which needs products alone."
        )

    def init(self, space: Space) -> VectorState:
        """See `VectorMethod.init`."""
        numbers = {name: torch.zeros((), dtype=torch.float64) for name in ("scale", "ratio", "length")}
        counts = {name: torch.zeros((), dtype=torch.int64) for name in ("tried", "rejected", "failed", "by_row")}
        return VectorState({}, {"l": torch.tensor(self.initial, dtype=torch.float64), **numbers, **counts})

    def probes(self, number: int) -> bool:
        """See `VectorMethod.probes`."""
        return True

    def update(self, state: VectorState, step: Step) -> Tensor | None:
        """See `VectorMethod.update`."""
        numbers, found = state.numbers, step.oracle.residuals()
        system = DampedLeastSquares(found.jacobian, found.values)
        here, mean = float(found.values.double().square().sum()) / 2, system.scale
        if not math.isfinite(here) or not math.isfinite(mean):
            numbers["failed"] += 1
            numbers["length"].zero_()
            return torch.zeros_like(step.update)
        if float(numbers["scale"]) == 0:
            numbers["scale"].fill_(mean)
        scale, growth = float(numbers["scale"]), 2.0
        numbers["by_row"].fill_(found.by_row)
        for trial in range(1, self.trials + 1):
            damping = float(numbers["l"]) * scale
            solved = system.solve(damping)
            taken, ratio = solved.value.to(step.update), -1.0
            if solved.ok and (foretold := system.change(solved.value, damping)) < 0:
                there = step.oracle.loss(taken)
                ratio = (there - here) / foretold if math.isfinite(there) else ratio
            numbers["failed"] += not solved.ok
            numbers["tried"].fill_(trial)
            numbers["ratio"].fill_(ratio)
            changed, growth = smoothed(max(float(numbers["l"]), LEAST), ratio, growth)
            numbers["l"].fill_(changed)
            if ratio > 0:
                numbers["length"].fill_(step.space.norm(taken))
                return taken.mul_(step.schedule)
        numbers["rejected"] += 1
        numbers["length"].zero_()
        return torch.zeros_like(step.update)

    def scalars(self, state: VectorState) -> dict[str, float]:
        """See `VectorMethod.scalars`."""
        numbers = state.numbers
        return {
            "curv/damping": float(numbers["l"] * numbers["scale"]),
            "curv/reduction_ratio": float(numbers["ratio"]),
            "curv/trials": float(numbers["tried"]),
            "curv/step_length": float(numbers["length"]),
            "curv/by_row": float(numbers["by_row"]),
            "curv/rejected": float(numbers["rejected"]),
            "curv/failed": float(numbers["failed"]),
        }
