"""How many steps a method would have needed, from the losses of a training and of a copy that took fewer steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Losses are averaged over this share of the steps before and after each.
SMOOTHED = 0.15
#: The loss that is to be reached is the mean of this share of the last steps.
LAST = 0.1
#: Of its steps, the copy's from this share on tell how it goes on.
RECENT = 0.5
#: Bounds on the power by which it is taken to go on.
POWERS = (0.7, 1.5)
#: With fewer steps of the copy nothing is said.
LEAST = 10


@dataclass(frozen=True)
class Prediction:
    """What the copy foretells.

    Attributes:
        steps: Steps that the method would have needed to the training's last loss.
        of: Steps of the training.
        seen: Whether the copy has reached that loss, so that nothing was extrapolated.
    """

    steps: float
    of: int
    seen: bool

    @property
    def share(self) -> float:
        """The steps needed, over those of the training."""
        return self.steps / self.of


def predict(training: Sequence[float], copy: Sequence[float]) -> Prediction | None:
    """Foretell the steps to the training's last loss.

    Both curves are smoothed and made to fall. Where the copy has reached the loss, its step is the answer. Else its
    step s has the loss that the training had at step t(s); t ~ s^p is fitted to its recent steps, and continued to the
    training's last.

    Args:
        training: Its loss at each step.
        copy: That of the copy, which has trained with the method from the same start, at each of its own steps.

    Returns:
        The prediction; None where the copy has taken too few steps, or has not come below the training's first loss.
    """
    steps, taken = len(training), len(copy)
    if taken < LEAST or steps < LEAST or not all(map(math.isfinite, (*training, *copy))):
        return None
    last = max(1, round(steps * LAST))
    target = sum(training[-last:]) / last
    ours, theirs = falling(smoothed(copy)), falling(smoothed(training))
    reached = _reached(ours, target)
    if reached is not None:
        return Prediction(reached, steps, seen=True)
    first = max(1, math.ceil(RECENT * taken))
    points = [(step, _reached(theirs, ours[step - 1]) or steps) for step in range(first, taken + 1)]
    xs, ys = [math.log(s) for s, _ in points], [math.log(t) for _, t in points]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    if y <= 0:
        return None
    spread = sum((each - x) ** 2 for each in xs)
    slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / spread if spread else 1.0
    power = min(max(slope, POWERS[0]), POWERS[1])
    return Prediction(math.exp(x + (math.log(steps) - y) / power), steps, seen=False)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Means over windows around every step, as wide as `SMOOTHED` of it and no wider than there are steps on a side."""
    total, count, means = [0.0], len(losses), []
    for loss in losses:
        total.append(total[-1] + loss)
    for step in range(1, count + 1):
        half = min(int(step * SMOOTHED), step - 1, count - step)
        means.append((total[step + half] - total[step - half - 1]) / (2 * half + 1))
    return means


def falling(losses: Sequence[float]) -> list[float]:
    """The nearest curve, by squares, that never rises: neighbours that do are pooled."""
    pools: list[tuple[float, int]] = []
    for loss in losses:
        mean, count = loss, 1
        while pools and pools[-1][0] <= mean:
            before, many = pools.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def _reached(falling: Sequence[float], level: float) -> int | None:
    """The first step, from 1, at which a curve is at a level or below it."""
    return next((step for step, loss in enumerate(falling, 1) if loss <= level), None)
