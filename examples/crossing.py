"""Where a loss curve first reaches a target: the figure behind "steps to AdamW's final loss"."""

import math
from collections.abc import Sequence


def crossing(places: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """The first place (a step or a second) at which the curve is at or below `target`, linear between its points.

    Args:
        places: Where the losses were measured, increasing.
        losses: The loss at each place; values that are not finite never reach the target.
        target: The loss to reach.

    Returns:
        The place, or None where the curve never gets there.

    >>> crossing([0, 10, 20], [3.0, 2.0, 1.0], 1.5)
    15.0
    >>> crossing([0, 10, 20], [3.0, 2.0, 1.0], 0.5) is None
    True
    """
    for i, loss in enumerate(losses):
        if not loss <= target:
            continue
        if i == 0 or not math.isfinite(losses[i - 1]):
            return float(places[i])
        share = (losses[i - 1] - target) / (losses[i - 1] - loss)
        return places[i - 1] + share * (places[i] - places[i - 1])
    return None
