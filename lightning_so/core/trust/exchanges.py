"""What ranks exchange in a step: how often, and how many bytes, by kind; `traffic` sums the bytes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """Exchanges of one kind in a step.

    Attributes:
        kind: "all_reduce", "reduce", "reduce_scatter", "all_gather" or "all_to_all".
        calls: How many there are.
        size: Bytes that a rank hands over in all of them, as `comm` counts them.
        among: Between whom: "all" ranks, those of one "machine", or those of equal place "across" machines.
    """

    kind: str
    calls: float
    size: float
    among: str = "all"
