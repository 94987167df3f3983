"""What a resume check found: whether two runs are equal, and what a difference comes from."""

from dataclasses import dataclass
from enum import Enum


class Cause(Enum):
    """What makes a resumed run another one."""

    REPEAT = "two runs of the same steps differ"
    DATA = "the batches differ"
    RANDOM = "the random numbers differ"
    STATE = "state differs"
    WORLD = "another world sums in another order"


@dataclass(frozen=True)
class Reason:
    """One thing that a difference comes from.

    Attributes:
        cause: Its kind.
        text: What was seen, and what to do.
    """

    cause: Cause
    text: str

    def __str__(self) -> str:
        """Kind and text."""
        return f"{self.cause.value}: {self.text}"


@dataclass(frozen=True)
class Weights:
    """Final weights against final weights: parameters and buffers, by full name.

    Attributes:
        total: Tensors in either run.
        elements: Numbers in them.
        differing: Names of the tensors that are not the same bit for bit, in the model's order.
        largest: The largest absolute difference of a number; infinite where shapes differ or one is not finite.
        worst: Where that is; None if all are the same.
    """

    total: int
    elements: int
    differing: tuple[str, ...] = ()
    largest: float = 0.0
    worst: str | None = None


@dataclass(frozen=True)
class ResumeCheck:
    """Whether a training that was stopped and resumed equals one that was not.

    Attributes:
        steps: Steps of the whole training.
        stop: Steps before the stop.
        worlds: Ranks and strategy of the run without a stop and of the resumed one.
        weights: The comparison of the final weights.
        differences: Where plans or counts of `SecondOrder` differ.
        done: What `SecondOrder` did in the run without a stop, in words.
        reasons: What a difference comes from; empty if there is none.
        tolerance: The largest difference of a weight that counts as equal.
    """

    steps: int
    stop: int
    worlds: tuple[str, str]
    weights: Weights
    differences: tuple[str, ...]
    done: str
    reasons: tuple[Reason, ...]
    tolerance: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether weights, plans and counts are the same, bit for bit."""
        return not self.weights.differing and not self.differences

    @property
    def equal(self) -> bool:
        """Whether weights are the same within the tolerance, plans and counts exactly."""
        return not self.differences and (self.exact or self.weights.largest <= self.tolerance)

    @property
    def exit_code(self) -> int:
        """0 if equal, 1 if not."""
        return 0 if self.equal else 1

    def __str__(self) -> str:
        """The verdict, what was compared, and reasons."""
        whole, resumed = self.worlds
        lines = [
            f"{self._verdict()} ({self.steps} steps, against {self.stop}, a checkpoint and {self.steps - self.stop})",
            f"  without a stop: {whole}; resumed: {resumed}",
            f"  final weights: {self._weights()}",
            *(f"  {text}" for text in self.differences or (f"plan and counts: the same ({self.done})",)),
        ]
        if self.reasons:
            lines += ["What it comes from:", *(f"  {reason}" for reason in self.reasons)]
        return "\n".join(lines)

    def _verdict(self) -> str:
        if self.exact:
            return "EQUAL, bit for bit"
        return f"EQUAL within {self.tolerance:g}" if self.equal else "DIFFERENT"

    def _weights(self) -> str:
        found = self.weights
        if not found.differing:
            return f"{found.total} tensors, {found.elements:,} numbers, the same bit for bit"
        return (
            f"{len(found.differing)} of {found.total} tensors differ, by at most {found.largest:.1e} ({found.worst}); "
            f"the first is {found.differing[0]}"
        )
