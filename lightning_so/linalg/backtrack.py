"""Going back: from the last iterate of a solve to an earlier one, and along a step to a shorter one."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_so.linalg.cg import Iterate

#: How much shorter the next step is that is tried, and what share of the slope's promise is enough.
SHRINK, ENOUGH = 0.8, 1e-2


def backtracked(kept: Sequence[Iterate], loss: Callable[[Tensor], float]) -> tuple[Iterate, float]:
    """Walk back over iterates while the loss falls.

    Source: Martens 2010, section 4.6.

    Args:
        kept: Iterates, the last one last; one at least.
        loss: Of a displacement; what is not finite is worse than any number.

    Returns:
        The iterate, and its loss.
    """
    best, lowest = kept[-1], loss(kept[-1].value)
    for iterate in reversed(kept[:-1]):
        value = loss(iterate.value)
        if math.isfinite(lowest) and not (math.isfinite(value) and value < lowest):
            break
        best, lowest = iterate, value
    return best, lowest


def armijo(
    loss: Callable[[float], float], here: float, slope: float, trials: int, full: float | None = None
) -> tuple[float, float]:
    """Shorten a step until the loss falls by a share of what its slope promises.

        the first a of 1, 0.8, 0.64, ... with f(a) <= f(0) + a slope / 100

    Source: Armijo 1966; the numbers of Martens 2010.

    Args:
        loss: f, of a; where it is not finite no step ends.
        here: f(0).
        slope: f'(0).
        trials: How many are tried.
        full: f(1), where it is known.

    Returns:
        a and f(a); 0 and f(0) where there is none.

    Example:
        >>> armijo(lambda a: (2 * a - 1) ** 2, here=1.0, slope=-4.0, trials=20)[0]
        0.8
    """
    if not slope < 0:
        return 0.0, here
    for trial in range(trials):
        a = SHRINK**trial
        value = full if full is not None and trial == 0 else loss(a)
        if math.isfinite(value) and value <= here + ENOUGH * a * slope:
            return a, value
    return 0.0, here
