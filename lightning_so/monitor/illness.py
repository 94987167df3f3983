"""Which layers are ill, by the numbers of `Health`: beyond what healthy networks show, fresh or trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_so.recording.levels import COLLAPSED, DEAD, EXPLODING, SATURATED, WIDE

#: Kinds of illness, in the order of the rows of `Health.numbers`.
KINDS = ("dead", "saturated", "rank", "largest")


@dataclass(frozen=True)
class Ill:
    """One layer that is ill.

    Attributes:
        layer: Its name.
        kind: One of `KINDS`.
        value: The number that says so.
    """

    layer: str
    kind: str
    value: float

    def __str__(self) -> str:
        """In one line."""
        said = {
            "dead": f"{100 * self.value:.0f} % of its units are zero for every sample",
            "saturated": f"{100 * self.value:.0f} % of its units are at the ends of their range for most samples",
            "rank": f"its outputs vary in {self.value:.2f} directions",
            "largest": f"its outputs have a root mean square of {self.value:.3g}",
        }
        return f"{self.layer}: {said[self.kind]}"


def ill(names: Sequence[str], widths: Sequence[int], numbers: Sequence[Sequence[float]]) -> list[Ill]:
    """The layers that are ill.

    Of layers that explode the first is told: those behind it are large because it is.

    Args:
        names: Of layers, in their order in the model; better in that of their calls (`Health.order`).
        widths: Their units.
        numbers: `Health.numbers`, on the host: four rows, nan or None where there is none.

    Returns:
        What is ill, by kind, then in the order of layers.

    Example:
        >>> nan = float("nan")
        >>> print(*ill(["a", "b"], [8, 8], [[1.0, 0.1], [nan, nan], [1.0, 5.0], [0.1, 0.3]]), sep="; ")
        a: 100 % of its units are zero for every sample; a: its outputs vary in 1.00 directions
    """
    dead, saturated, ranks, largest = ([math.nan if n is None else n for n in row] for row in numbers)
    found = [Ill(name, "dead", share) for name, share in zip(names, dead) if share > DEAD]
    found += [Ill(name, "saturated", share) for name, share in zip(names, saturated) if share > SATURATED]
    wide = [rank if width >= WIDE else math.nan for rank, width in zip(ranks, widths, strict=True)]
    found += [Ill(name, "rank", rank) for name, rank in zip(names, wide) if rank < COLLAPSED]
    return found + [Ill(name, "largest", rms) for name, rms in zip(names, largest) if rms > EXPLODING][:1]
