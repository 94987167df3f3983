"""What a vector engine remembers."""

from dataclasses import dataclass


@dataclass
class Counts:
    """What was done.

    Attributes:
        steps: Steps of the base that the method saw.
        skipped: Steps that were left to the base: it moved nothing, or something was not finite.
        refused: Answers of the method that were not finite; the base's steps were kept.
        evaluations: Gradients that were computed besides the training's own; a product by double backward counts as
            two, which is about what it takes, and its graph as one.
        forwards: Forward passes without a gradient.
    """

    steps: int = 0
    skipped: int = 0
    refused: int = 0
    evaluations: int = 0
    forwards: int = 0
