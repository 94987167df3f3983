"""The length of a step from the parabola along it: a training without a learning rate to choose."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.contract.vector_method import CURVATURES, Owned, Step, VectorState
from lightning_so.errors import check_choice, check_count, check_range
from lightning_so.linalg.vectors import Space

#: Largest rise of the factor at once; it falls as far as it has to.
STRIDE = 2.0
#: Between two looks no step is longer than this many times the one that was looked at: a parabola is true nearby.
REACH = 4.0
#: A first step that ends on a slope this many times as steep as the one it went down is too long.
STEEP = 10.0
#: Lengths of the first step that are tried until the gradient is finite, each a tenth of the one before.
LENGTHS = 30


@dataclass(frozen=True)
class AutoStep:
    """Multiply the base's updates by one factor, which the loss along the last of them gives.

        a = <g(w - u), u> / |u|^2,   b = <g(w), u> / |u|^2,   curvature b - a
        factor = share E[-a] / E[b - a]          of steps of the learning rate that the optimizer was made with

    u is the step that has led here and g the gradient of a new batch, at both of its ends: u knows nothing of that
    batch's noise, so that both slopes are unbiased (of the batch that has made u they are not: its gradient is in u).
    One evaluation each time. The first step is looked at before it is taken: where it leads up a slope ten times as
    steep it is shortened. The factor rises by at most 2 at once, and falls at once where the curvature has risen: a
    step that is much too long cannot wait for an average. Between two looks no step is longer than 4 times the one that
    was looked at. A look at what is not finite changes nothing; a first step of which no length leads to a finite
    gradient is not taken, and the next is the first. Both are counted in `curv/failed`. Schedulers multiply as they are
    wont to: the factor belongs to the rate that they started from.

    Source: parabola along the step: Rolinek and Martius 2018, arXiv 1802.05074, for the idea of a step length from a
    local model; a second batch for the slopes is what noise asks for (see docs/methods/few-directions.md).

    Attributes:
        every: Steps between two looks.
        share: Of the modelled best length.
        memory: What is left of the averages at each look.
        curvature: "measured", or "constant": what was measured first, to see what curvature is worth.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> AutoStep().every
        10
    """

    every: int = 10
    share: float = 1.0
    memory: float = 0.9
    curvature: str = "measured"

    owns: ClassVar[Owned] = "nothing"

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        check_count(name, "every", self.every, 1, 1_000_000)
        check_range(name, "share", self.share, 0.0, 10.0)
        check_range(name, "memory", self.memory, 0.0, 1.0, closed=False)
        check_choice(name, "curvature", self.curvature, CURVATURES)

    def refuse(self, space: Space, groups: Sequence[dict]) -> str | None:
        """See `VectorMethod.refuse`."""
        if len({float(group.get("initial_lr", group["lr"])) for group in groups}) == 1:
            return None
        return "AutoStep gives one factor to all: give the optimizer's groups one learning rate, or leave it out."

    def init(self, space: Space) -> VectorState:
        """See `VectorMethod.init`."""
        numbers = {
            name: torch.zeros((), dtype=torch.float64) for name in ("slope", "curvature", "failed", "looks", "by")
        }
        # "by": by what the last step was multiplied, schedulers included; 0 before the first.
        # How long steps may be: before the first look as long as they are.
        numbers["longest"] = torch.full((), float("inf"), dtype=torch.float64)
        numbers["factor"] = torch.ones((), dtype=torch.float64)
        return VectorState({"last": space.zeros()}, numbers)

    def probes(self, number: int) -> bool:
        """See `VectorMethod.probes`."""
        return number == 1 or number % self.every == 0

    def update(self, state: VectorState, step: Step) -> Tensor | None:
        """See `VectorMethod.update`."""
        numbers, last = state.numbers, state.vectors["last"]
        if not bool(numbers["by"]):
            if not self._begin(state, step):
                return torch.zeros_like(step.update)
        elif self.probes(step.number):
            self._look(state, step)
        factor = min(float(numbers["factor"]), float(numbers["longest"]) / step.space.norm(step.update))
        torch.mul(step.update, factor, out=last)
        numbers["by"].fill_(factor * step.schedule)
        return last

    def _begin(self, state: VectorState, step: Step) -> bool:
        """Look ahead along the first step: where it leads up a slope many times as steep, it is shortened.

        Returns:
            Whether a length of it leads to where the gradient is finite.
        """
        u, numbers = step.update, state.numbers
        for shorter in range(LENGTHS):
            ahead = 10.0**-shorter * u
            slopes = step.space.gram(u[None], torch.stack([step.oracle.here, step.oracle.at(ahead)]))[0].tolist()
            if abs(slopes[0]) + abs(slopes[1]) < float("inf"):
                break
            numbers["failed"] += 1
        else:
            return False
        if shorter or slopes[1] > STEEP * abs(slopes[0]):
            share = -slopes[0] / (slopes[1] - slopes[0]) if slopes[1] > slopes[0] else 1.0
            numbers["factor"].fill_(10.0**-shorter * (min(share, 1.0) if share > 0 else 1 / STEEP))
        return True

    def _look(self, state: VectorState, step: Step) -> None:
        """Measure the loss along the last step, and move the factor."""
        numbers, last = state.numbers, state.vectors["last"]
        ends = torch.stack([last, step.oracle.at(-last), step.oracle.here])
        square, before, after = step.space.gram(last[None], ends)[0].tolist()
        if not (square and abs(before) + abs(after) < float("inf")):
            numbers["failed"] += 1
            return
        slope, curvature = before / square * float(numbers["by"]), (after - before) / square
        if self.curvature == "constant" and bool(numbers["curvature"]):
            curvature = float(numbers["curvature"])
        rate = 1 - self.memory if numbers["looks"] > 0 else 1.0
        numbers["slope"] += rate * (slope - numbers["slope"])
        numbers["curvature"] += rate * (curvature - numbers["curvature"])
        numbers["looks"] += 1
        numbers["longest"].fill_(REACH * math.sqrt(square))
        fall, bend = -float(numbers["slope"]), max(float(numbers["curvature"]), curvature)
        factor = float(numbers["factor"])
        # No minimum ahead: on, as far as is allowed at once; nothing but a rise: back, and no number says how far.
        best = self.share * fall / bend if bend > 0 else math.inf
        taken = min(best, STRIDE * factor) if best > 0 else factor / STRIDE
        if taken != best:
            numbers["looks"].zero_()  # Still on the way: what was seen from here says little of there.
        numbers["factor"].fill_(taken)

    def scalars(self, state: VectorState) -> dict[str, float]:
        """See `VectorMethod.scalars`."""
        numbers = state.numbers
        names = {"factor": "curv/step_factor", "curvature": "curv/along_step", "failed": "curv/failed"}
        return {to: float(numbers[name]) for name, to in names.items()}
