"""Which samples, or which positions, of a micro-batch build a factor: every k-th, and the first moves with the step.

Every one has the same chance, so that sums divided by the share that is kept are unbiased.
Legend: Q groups, N samples, T positions of a sample, P positions that are kept, D features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_so.layers.registry import Layer

#: A prime: that by which the first one moves each step.
LEAP = 7919
#: Of how many positions one is taken where samples are taken first.
SPREAD = 8


def every(count: int, most: int, step: int, each: int = 1) -> slice | None:
    """About `most` of a number of things, equally far apart.

    Args:
        count: How many there are.
        most: How many should be left.
        step: Decides which is the first.
        each: How many a sample has. The distance has no divisor in common with it: then as many are left of each place
            in a sample.

    Returns:
        Which; None for all.
    """
    stride = -(-count // most)
    if stride <= 1:
        return None
    while math.gcd(stride, each) > 1:
        stride += 1
    return slice(step * LEAP % min(stride, count), count, stride)


@dataclass(frozen=True)
class Positions:
    """Positions of a micro-batch that build a factor.

    Attributes:
        samples: N.
        each: T.
        kept: Which, counted through all samples; None for all.
    """

    samples: int
    each: int
    kept: slice | None

    @property
    def count(self) -> int:
        """P."""
        total = self.samples * self.each
        return total if self.kept is None else len(range(*self.kept.indices(total)))

    def numbers(self, device: torch.device) -> Tensor:
        """Their numbers, shape (P,), where some are kept."""
        assert self.kept is not None
        return torch.arange(self.kept.start, self.kept.stop, self.kept.step, device=device)

    def rows(
        self, rows: Callable[..., Tensor], at: Callable[..., Tensor] | None, module: nn.Module, x: Tensor
    ) -> Tensor:
        """Rows of one side of a layer at these positions.

        Args:
            rows: `inputs` or `outputs` of its description.
            at: `inputs_at` or `outputs_at`.
            module: The layer.
            x: What these are given.

        Returns:
            The rows, shape (Q, P, D): a view where it can be.
        """
        if self.kept is None:
            return rows(module, x).flatten(1, 2)
        if at is not None:
            return at(module, x, self.numbers(x.device))
        rows_QNTD = rows(module, x)
        if self.samples == 1 or self.each == 1 or rows_QNTD.stride(1) == self.each * rows_QNTD.stride(2):
            return rows_QNTD.flatten(1, 2)[:, self.kept]
        numbers = self.numbers(x.device)
        return rows_QNTD[:, numbers // self.each, numbers % self.each]


def extent(layer: Layer, module: nn.Module, x: Tensor, g: Tensor) -> tuple[int, int]:
    """Samples of one use of a layer, and positions of each: of the side whose rows need no copy."""
    rows = layer.outputs(module, g) if layer.outputs_at is None else layer.inputs(module, x)
    return rows.shape[1], rows.shape[2]


def samples(
    layer: Layer, module: nn.Module, x: Tensor, g: Tensor, *, most: int, step: int
) -> tuple[Tensor, Tensor, float]:
    """Some samples of one use of a layer, with all their positions, of which about `most` are left.

    Args:
        layer: The layer's description.
        module: The layer.
        x: Its input.
        g: Gradient of its output.
        most: How many positions should be left.
        step: Decides which samples.

    Returns:
        The samples of x and g, and the share that they are.
    """
    kept = _kept(layer, module, x, g, most=most, step=step)
    return (x, g, 1.0) if kept is None else (x[kept], g[kept], len(g[kept]) / len(g))


def _kept(layer: Layer, module: nn.Module, x: Tensor, g: Tensor, *, most: int, step: int) -> slice | None:
    if layer.joint or layer.single(x):
        return None
    count, each = extent(layer, module, x, g)
    return every(count, max(1, most // each), step)


def positions(
    layer: Layer, module: nn.Module, x: Tensor, g: Tensor, *, most: int, step: int
) -> tuple[Tensor, Tensor, Positions, float]:
    """Some positions of one use of a layer.

    Args:
        layer: The layer's description.
        module: The layer.
        x: Its input.
        g: Gradient of its output.
        most: How many should be left.
        step: Decides which.

    Returns:
        Samples of x and g, positions of these, and the share that they are of all.
    """
    share = 1.0
    if layer.inputs_at is not None or layer.outputs_at is not None:
        # Padding costs as much as the samples that it is made of.
        first = _kept(layer, module, x, g, most=SPREAD * most, step=step)
        if first is not None:
            # Both draws must not move in step: some positions of some samples would never be drawn.
            share, step = len(g[first]) / len(g), step // first.step
            x, g = x[first], g[first]
    count, each = extent(layer, module, x, g)
    some = Positions(count, each, every(count * each, most, step, each))
    return x, g, some, share * some.count / (count * each)
