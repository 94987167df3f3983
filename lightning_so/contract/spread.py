"""How solves are spread over the interval, and what they may cost at a step."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from lightning_so.errors import check_range


class Spread(ABC):
    """How solves are spread over the interval: `Staggered` or `Synchronous`."""

    @property
    @abstractmethod
    def staggered(self) -> bool:
        """Whether units get slots of their own."""

    @abstractmethod
    def budget(self, peak: float, busy: float) -> float:
        """What solves may cost at a step, in the units of the cost model.

        Args:
            peak: The optimizer work of the dearest phase: all cold without solves, or all warm with the fullest slot's
                solves, whichever is more: a level that steps reach anyway.
            busy: The work of this step without solves.
        """


@dataclass(frozen=True)
class Staggered(Spread):
    """Spread the solves over the interval and bound the work of every step (the default).

    Attributes:
        headroom: Largest modelled optimizer work of a step over that of the dearest phase; solves beyond it slip.
    """

    headroom: float = 1.12

    def __post_init__(self) -> None:
        """Check the argument."""
        check_range("Staggered", "headroom", self.headroom, 1.01, 10.0)

    @property
    def staggered(self) -> bool:
        """Each unit has a slot."""
        return True

    def budget(self, peak: float, busy: float) -> float:
        """See `Spread.budget`: what is left of the headroom."""
        return max(0.0, self.headroom * peak - busy)


@dataclass(frozen=True)
class Synchronous(Spread):
    """Solve every unit on the same step, once an interval: the textbook burst, for comparison."""

    @property
    def staggered(self) -> bool:
        """All units share one slot."""
        return False

    def budget(self, peak: float, busy: float) -> float:
        """See `Spread.budget`: unbounded."""
        return math.inf
