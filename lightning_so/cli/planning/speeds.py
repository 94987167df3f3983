"""A device as speeds: what a training, second order's own products and solves reach on one that is not here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_so.cli.planning.forecast import Forecast
from lightning_so.core.assembly import Parts
from lightning_so.core.overhead.timings import Timings
from lightning_so.errors import ConfigError


@dataclass(frozen=True)
class Speeds:
    """Floating-point operations a second.

    Attributes:
        training: Of the training's own products. 400 TFLOP/s is 40 % of an H100's dense bf16 peak.
        products: Of ours, in fp32: 34 TFLOP/s is what Muon's polar factors reached on an H100 (0.80 TFLOP in 23.6 ms).
        solves: Of the modelled cost of a solve: 1.5 TFLOP/s is a Householder basis of side 768 in 4.4 ms on an H100.
    """

    training: float = 400e12
    products: float = 34e12
    solves: float = 1.5e12

    def timings(self, found: Forecast, own: float, rows: int) -> list[Timings]:
        """Seconds of the parts of a step of one process that does all of the work.

        Args:
            found: The forecast.
            own: Multiply-adds of the training's own step.
            rows: Rows of a layer's input of which a method that observes rows may take some.

        Returns:
            One an optimizer.
        """
        return [
            Timings(
                2 * own / self.training / len(found.engines),
                2 * alone / self.products,
                0.0,
                2 * rows_of(parts, rows) / self.products,
                1,
                tuple(2 * cost / self.solves for cost in kinds(parts)),
            )
            for parts, alone in zip(found.engines, found.alone, strict=True)
        ]


#: By name of `--device`.
DEVICES = {"h100": Speeds()}


def speeds_of(said: str) -> Speeds:
    """The speeds of `--device`.

    Args:
        said: One of `DEVICES`, or TFLOP/s of the training's own products, of second order's and of solves
            ("400/34/1.5").

    Returns:
        The speeds.

    Raises:
        ConfigError: If it is neither.
    """
    if said.lower() in DEVICES:
        return DEVICES[said.lower()]
    try:
        numbers = [1e12 * float(part) for part in said.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(0 < number < math.inf for number in numbers):
        raise ConfigError(
            f"--device must be one of {list(DEVICES)}, or TFLOP/s of the training's own products, of second order's "
            f"and of solves (400/34/1.5), and is {said!r}."
        )
    return Speeds(*numbers)


def kinds(parts: Parts) -> Sequence[float]:
    """By kind of unit, the modelled cost of a solve."""
    found = {kind: unit.cost for kind, unit in zip(parts.units.kinds, parts.units, strict=True)}
    return [found[kind] for kind in sorted(found)]


def rows_of(parts: Parts, rows: int) -> float:
    """Multiply-adds of factors of rows at a step that watches all blocks: those of inputs and of gradients."""
    total = 0.0
    for stack in parts.stacks:
        taken = min(rows, getattr(stack.method, "rows", rows) or rows)
        widest = getattr(stack.method, "cap", None) or 1024
        total += (stack.tapped is not None) * taken * len(stack.blocks) * sum(n * min(n, widest) for n in stack.shape)
    return total
