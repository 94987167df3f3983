"""*Stretch*: how much longer than the base's a bent update is, while the loss goes on falling straight along it.

Bending keeps the length of the base's update and turns it from where the loss falls fastest. Where curvature limits a
step that pays; where nothing does (first steps, small rates, short trainings) the turned step falls less far than the
base's own would. Two slopes along a step D tell which it is: at its start, and at its end by the next batch's gradient.

    P = -<g, D> / |D|       what the step promises a unit of its length
    E = -<g', D> / |D|      what is left of it at the end; g' is the next gradient, whose noise D has not seen
    Q = (P - E) / |D|       what curvature takes of it
    B = -<g, u> / |u|       what the base's own update u promises
    s = max(1, min(P / (Q |u|), 1.5 B / P, 5))

P / Q is where the loss is least along the step, B / P where it promises as much as the base's own. All are means over
samples, each by the same decay. The noise of g is in P and not in E: it passes for curvature, and keeps s at 1.

Source: this project's, measured in benchmarks/README.md; slopes at both ends of a step are those of an exact line
search. Legend: k blocks, B of a stack.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

#: Of what is known, what one sample leaves.
DECAY = 0.8
#: Samples before any update is longer.
SAMPLES = 3
#: How many times what the base's own update promises a longer one may promise.
REACH = 1.5
#: The most that s is.
MOST = 5.0


@dataclass(eq=False)
class Slopes:
    """What is known of the slopes along the updates of B blocks.

    Attributes:
        means: P, Q, B and the number of samples of each block, shape (B, 4).
        bounds: Of them, P / Q and the most that s may be, shape (B, 2); zeros where too little is known.
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

    def drop(self) -> None:
        """Have no step wait."""
        if self.open:
            self.opened.zero_()
            self.open = False


def learned(means: Tensor, opened: Tensor, ends: Tensor) -> Tensor:
    """Means with one more sample.

    Args:
        means: As they were, (k, 4).
        opened: Sums of the first slope over ranks, (k, 3).
        ends: <g', D> of each, (k,).

    Returns:
        The means; as they were of blocks that did not move, or of which a slope is not finite.
    """
    first, square, base = opened.unbind(1)
    length = square.sqrt()
    promised, left = -first / length, -ends / length
    sample = torch.stack([promised, (promised - left) / length, -base], 1)
    known = sample.isfinite().all(1, keepdim=True)
    found = torch.cat([torch.lerp(sample, means[:, :3], DECAY), means[:, 3:] + 1], 1)
    return torch.where(known, found, means)


def bounds(means: Tensor) -> Tensor:
    """How long an update may be, and how many times as long as the base's.

    Args:
        means: What is known, (k, 4).

    Returns:
        Both of each block, (k, 2): zeros before enough is known, and of a step that promises nothing.
    """
    promised, taken, base, samples = means.unbind(1)
    known = (samples >= SAMPLES) & (promised > 0)
    found = torch.stack([torch.where(taken > 0, promised / taken, torch.inf), REACH * base / promised], 1)
    return torch.where(known[:, None], found, 0.0)


def stretched(bounds: Tensor, lengths: Tensor) -> Tensor:
    """Lengths over the base's, s of each block, (k,).

    Args:
        bounds: See `bounds`, (k, 2).
        lengths: |u|, (k,).

    Returns:
        Numbers from 1 to `MOST`.
    """
    return torch.minimum(bounds[:, 0] / lengths, bounds[:, 1]).clamp_(1.0, MOST)
