"""*Stretch*: how much longer than the base's a bent update is, while the loss goes on falling straight along it.

Bending keeps the length of the base's update and turns it from where the loss falls fastest. Where curvature limits a
step that pays; where nothing does (first steps, small rates, short trainings) the turned step falls less far than the
base's own would. Two slopes along a step D tell which it is: at its start, and at its end by the next batch's gradient.

    P = -<g, D> / |D|       what the step promises a unit of its length
    E = -<g', D> / |D|      what is left of it at the end; g' is the next gradient, whose noise D has not seen
    Q = (P - E) / |D|       what curvature takes of it
    B = -<g, u> / |u|       what the base's own update u promises
    s = max(1, min(P / (Q |u|), 1.5 B / P, 1.4 s', 5))

P / Q is where the loss is least along the step, B / P where it promises as much as the base's own. All are means over
samples by the same decay; of the last sample alone P / Q counts too where it is less, so that one step that went too
far ends it, and s' is s at that sample: it grows step by step. The noise of g is in P and not in E: it passes for
curvature, and keeps s at 1.

Source: this project's, measured in benchmarks/README.md; slopes at both ends of a step are those of an exact line
search. Legend: k blocks, B of a stack.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Of what is known, what one sample leaves.
DECAY = 0.8
#: Samples before any update is longer.
SAMPLES = 3
#: How many times what the base's own update promises a longer one may promise.
REACH = 1.5
#: How many times the last s the next may be.
GROWTH = 1.4
#: The most that s is.
MOST = 5.0


@dataclass(eq=False)
class Slopes:
    """What is known of the slopes along the updates of B blocks.

    Attributes:
        means: P, Q, B and the number of samples of each block, shape (B, 4).
        bounds: How long an update may be and the most that s may be, shape (B, 2); zeros where too little is known.
        opened: This rank's part of <g, D>, |D|^2 and <g, u> / |u| of the step that was made, shape (B, 3).
        times: s of each block at its last bent step, shape (B,).
        open: Whether a step waits for its second slope.
        used: Whether there ever was one.
    """

    means: Tensor
    bounds: Tensor
    opened: Tensor
    times: Tensor
    open: bool = False
    used: bool = False

    @classmethod
    def none(cls, blocks: int, dtype: torch.dtype, device: torch.device) -> "Slopes":
        """Nothing is known."""
        means, bounds, opened = torch.zeros(blocks, 9, dtype=dtype, device=device).split([4, 2, 3], 1)
        return cls(means, bounds, opened, torch.ones(blocks, dtype=dtype, device=device))

    @property
    def numbers(self) -> Tensor:
        """All that is known, (B, 10), for files."""
        return torch.cat([self.means, self.bounds, self.opened, self.times[:, None]], 1)

    def recall(self, row: int, numbers: Sequence[float], *, opened: bool) -> None:
        """Go on with `numbers` of a block, its first slope among them if the second is still to come."""
        found = torch.tensor(numbers, dtype=self.means.dtype)
        self.means[row], self.bounds[row], first, self.times[row] = *found[:9].split([4, 2, 3]), found[9]
        self.used = True
        if opened:
            self.opened[row] = first

    def drop(self) -> None:
        """Have no step wait."""
        if self.open:
            self.opened.zero_()
            self.open = False


def sampled(opened: Tensor, ends: Tensor) -> Tensor:
    """P, Q and B of the last step alone, (k, 3).

    Args:
        opened: Sums of the first slope over ranks, (k, 3).
        ends: <g', D> of each, (k,).

    Returns:
        Not finite for blocks that did not move, and where a slope is not.
    """
    first, square, base = opened.unbind(1)
    length = square.sqrt()
    promised, left = -first / length, -ends / length
    return torch.stack([promised, (promised - left) / length, -base], 1)


def learned(means: Tensor, sample: Tensor) -> Tensor:
    """Means with one more sample: as they were where it is not finite.

    Args:
        means: As they were, (k, 4).
        sample: See `sampled`, (k, 3).

    Returns:
        The means, (k, 4).
    """
    found = torch.cat([torch.lerp(sample, means[:, :3], DECAY), means[:, 3:] + 1], 1)
    return torch.where(sample.isfinite().all(1, keepdim=True), found, means)


def bounds(means: Tensor, sample: Tensor, times: Tensor) -> Tensor:
    """How long an update may be, and how many times as long as the base's.

    Args:
        means: What is known, (k, 4).
        sample: See `sampled`, (k, 3).
        times: s of the last step, (k,).

    Returns:
        Both of each block, (k, 2): zeros before enough is known, and of steps that promise nothing.
    """
    promised, _, base, samples = means.unbind(1)
    known = (samples >= SAMPLES) & (promised > 0)
    most = torch.minimum(REACH * base / promised, GROWTH * times)
    found = torch.stack([torch.minimum(_least(means), _least(sample)), most], 1)
    return torch.where(known[:, None], found, 0.0)


def _least(slopes: Tensor) -> Tensor:
    """P / Q, how far it is to the least loss; no bound where there is no curvature."""
    return torch.where(slopes[:, 1] > 0, slopes[:, 0] / slopes[:, 1], torch.inf)


def stretched(bounds: Tensor, lengths: Tensor) -> Tensor:
    """Lengths over the base's, s of each block, (k,).

    Args:
        bounds: See `bounds`, (k, 2).
        lengths: |u|, (k,).

    Returns:
        Numbers from 1 to `MOST`.
    """
    least = bounds[:, 0] / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
    return torch.minimum(least, bounds[:, 1]).clamp_(1.0, MOST)
