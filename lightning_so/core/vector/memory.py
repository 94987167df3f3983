"""What a vector engine remembers from one step to the next, besides its method's state."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lightning_so.probe.difference import ProductChoice


@dataclass
class Counts:
    """What was done.

    Attributes:
        steps: Steps of the base that the method saw.
        skipped: Steps that were left to the base: it moved nothing, or something was not finite.
        refused: Answers of the method that were not finite: the base's step was kept, or none was made where it is no
            step of the method's.
        unusable: Losses that were evaluated and were not finite, and gradients that were to say how products are taken.
        evaluations: Gradients that were computed besides the training's own; a product by double backward counts as
            two, which is about what it takes, and its graph as one.
        forwards: Forward passes without a gradient.
    """

    steps: int = 0
    skipped: int = 0
    refused: int = 0
    unusable: int = 0
    evaluations: int = 0
    forwards: int = 0


@dataclass
class Memory:
    """How evaluations are made, what they have found out, and how many there were.

    Attributes:
        name: The method's, for messages.
        product: How products were asked for; one of `PRODUCTS`.
        parallel: Whether each replica probes a direction of its own, on its part of the batch.
        tell: Called with what is worth telling.
        counts: What was done.
        examined: How products are taken; None before the first.
        repeats: Whether the same step twice was seen to be the same.
    """

    name: str
    product: str
    parallel: bool
    tell: Callable[[object], None] = lambda _: None
    counts: Counts = field(default_factory=Counts)
    examined: ProductChoice | None = None
    repeats: bool = False
