"""What a recorder does not wait to be asked for: losses that are not finite, and losses far above those before.

A loss is a spike where it is above the largest of the last `WINDOW` by more than `FAR` times their usual distance from
their median (1.4826 times the median of |loss - median|: the standard deviation of what is normal), and by more than
half of that median.
"""

import math
from collections import deque
from statistics import median

#: Steps before; fewest of them.
WINDOW, FEWEST = 100, 20
FAR, PART = 5.0, 0.5
#: Of a normal distribution the standard deviation over the median of |x - median|.
NORMAL = 1.4826
#: Steps after an alarm in which there is no other of its kind.
QUIET = 200


class Alarms:
    """Sees the losses in their order."""

    def __init__(self) -> None:
        """None has been seen."""
        self._losses, self._last = deque[float](maxlen=WINDOW), dict[str, int]()

    def see(self, step: int, loss: float | None) -> tuple[str, str] | None:
        """See the loss of a step.

        Args:
            step: The step.
            loss: Its loss; None where it is not known.

        Returns:
            "nan" or "spike", and what is to be said; None where nothing is, or it was said just now.
        """
        if loss is None:
            return None
        found = self._judged(loss)
        if math.isfinite(loss):
            self._losses.append(loss)
        if found is None or step - self._last.get(found[0], -QUIET) < QUIET:
            return None
        self._last[found[0]] = step
        return found

    def _judged(self, loss: float) -> tuple[str, str] | None:
        if not math.isfinite(loss):
            return "nan", f"the loss is {loss}"
        if len(self._losses) < FEWEST or loss <= max(self._losses):
            return None
        middle = median(self._losses)
        spread = NORMAL * median(abs(each - middle) for each in self._losses)
        if loss > max(self._losses) + max(FAR * spread, PART * abs(middle)):
            return "spike", f"the loss is {loss:.4g}, after a median of {middle:.4g}"
        return None
