"""How a loss is written: its level, over how many terms it sums, and how fast its base steps down it.

A loss that is multiplied by c, and SGD's rate divided by it, is the same training; so is a sum over samples in the
place of their mean. What is measured against these numbers does not see the difference.

Legend: B blocks of a stack, k of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_so.linalg.rows import put, some

#: Decay of the moving average a step.
BETA = 0.95
#: The least rate: a schedule may begin at zero.
LEAST = 1e-20


@dataclass(frozen=True)
class Written:
    """What a use tells of the loss behind it.

    Attributes:
        level: The loss as it goes backward, its part in the mean over ranks; 0 where it was not shown.
        unit: By how many terms' losses it is larger than the loss of one: 1 for a mean, their number for a sum.
        given: Whether gradients are those of the labels at hand.
    """

    level: Tensor | float
    unit: Tensor | float
    given: bool

    def numbers(self, like: Tensor) -> Tensor:
        """Level, unit, given, and a one to count by, shape (4,)."""
        found = [self.level, self.unit, float(self.given), 1.0]
        if not any(isinstance(number, Tensor) for number in found):
            return torch.tensor(found, dtype=like.dtype).to(like.device, non_blocking=True)
        return torch.stack([torch.as_tensor(number, dtype=like.dtype, device=like.device) for number in found])


@dataclass
class LossUnit:
    """What the losses of a stack's blocks have told, the same on every rank.

    Attributes:
        means: Moving averages of level, unit, given and a one, shape (B, 4): the last is how far they have been seen.
        rate: The largest learning rate so far, shape (B,).
        window: Sums of `Written.numbers` since the last fold, shape (B, 4). Not saved.
        folded: Step of each block's last fold, shape (B,), on the CPU; 0 before the first.
    """

    means: Tensor
    rate: Tensor
    window: Tensor
    folded: Tensor
    _highest: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, count: int, dtype: torch.dtype, device: torch.device) -> "LossUnit":
        """That of `count` blocks, of which nothing is known: the loss is taken for a mean."""
        place = {"dtype": dtype, "device": device}
        return cls(
            torch.tensor([0.0, 1.0, 0.0, 0.0], **place).repeat(count, 1),
            torch.zeros(count, **place),
            torch.zeros(count, 4, **place),
            torch.zeros(count),
        )

    def add(self, row: int, written: Written) -> None:
        """Add what one use of a block's layer tells."""
        self.window[row].add_(written.numbers(self.window))

    def fold(self, rows: list[int], step: int) -> None:
        """`mean <- b^k mean + (1 - b^k) window`, k the steps since the last fold; the first replaces what is there.

        But of the one: it begins at zero, so that it is the weight of what factors have seen.
        """
        last = self.folded.numpy()[rows]
        seen = [BETA ** (step - int(before)) for before in last]
        kept = [[share if before else 0.0] * 3 + [share] for share, before in zip(seen, last, strict=True)]
        window, means = some(self.window, rows), some(self.means, rows)
        count = window[:, 3:]
        keep = torch.tensor(kept, dtype=means.dtype).to(means.device, non_blocking=True)
        # A level is a sum over micro-batches, each divided by their number; the others are means over them.
        # One that is not finite says nothing: its gradients may have been mended.
        level = torch.where(window[:, :1].isfinite(), window[:, :1], means[:, :1])
        found = torch.cat([level, window[:, 1:] / count.clamp_min(1)], 1)
        put(self.means, rows, torch.where(count > 0, torch.lerp(found, means, keep), means))
        self.folded.numpy()[rows] = step
        self.clear(rows)

    def clear(self, rows: list[int]) -> None:
        """Forget what was told since the last fold."""
        put(self.window, rows, 0)

    def follow(self, rates: Sequence[float | Tensor]) -> None:
        """Take in the learning rates of a step, one a block."""
        numbers = [rate for rate in rates if not isinstance(rate, Tensor)]
        if len(numbers) < len(rates):
            found = torch.stack(
                [torch.as_tensor(rate, dtype=self.rate.dtype, device=self.rate.device) for rate in rates]
            )
        elif not self._highest or any(new > old for new, old in zip(numbers, self._highest, strict=True)):
            # Numbers stay on the host until one rises: to make a tensor of them would wait for the device.
            self._highest = [max(pair) for pair in zip(numbers, self._highest or numbers, strict=True)]
            found = torch.tensor(self._highest, dtype=self.rate.dtype).to(self.rate.device, non_blocking=True)
        else:
            return
        torch.maximum(self.rate, found, out=self.rate)

    def pace(self, rows: list[int] | slice) -> Tensor:
        """`rate unit` of blocks, (k,): SGD's step down one term's loss is as long as its gradient times this."""
        return (self.rate[rows] * self.means[rows, 1]).clamp_min(LEAST)

    def damping(self, times: float, rows: list[int] | slice) -> Tensor:
        """What is added to the curvature of blocks where `times` is, in the unit of their rate.

        Args:
            times: What is, once enough was seen.
            rows: The blocks.

        Returns:
            `(times + 1 - w) / (rate n)`, (k,), w the weight of what was seen. Of the rest nothing is known but that SGD
            steps down it: there the curvature is taken for one over its rate.
        """
        return (times + 1 - self.means[rows, 3]) / self.pace(rows)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What is saved."""
        yield "loss.means", self.means
        yield "loss.rate", self.rate
        yield "loss.folded", self.folded
