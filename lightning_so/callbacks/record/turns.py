"""How each weight moves: by turns, so that no step copies more than a few of them.

Of a weight W whose turn it is, W and its gradient g are copied before the step: |W|^2, |dW|^2, |g|^2 and <dW, g> follow
after it. From large weights every s-th number is taken and the sums are multiplied by s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_so.comm import Access

#: Steps in which every weight has its turn.
ROUND = 64
#: Numbers of a weight that are copied, at most.
NUMBERS = 1 << 14


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter that is looked at.

    Attributes:
        name: Its name in the model.
        param: The parameter.
        optimizer: Whose it is.
        access: Where its numbers are on this rank.
        stride: s.
        scale: By what sums over every s-th number are those over all of this rank's.
    """

    name: str
    param: Tensor
    optimizer: Optimizer
    access: Access
    stride: int
    scale: float

    @classmethod
    def of(cls, name: str, param: Tensor, optimizer: Optimizer, access: Access) -> "Weight":
        """Choose s."""
        numbers = access.weight(param).numel()
        stride = max(1, -(-numbers // NUMBERS))
        return cls(name, param, optimizer, access, stride, numbers / max(1, -(-numbers // stride)))

    def piece(self) -> Tensor:
        """This rank's numbers that are looked at, flat: a view where that can be."""
        return self.access.weight(self.param).detach().reshape(-1)[:: self.stride]

    def gradient(self) -> Tensor | None:
        """The gradient of them; None where there is none."""
        grad = self.access.grad(self.param)
        return None if grad is None or grad.is_sparse else grad.detach().reshape(-1)[:: self.stride]


class Turns:
    """Looks at every weight once a round.

    Attributes:
        weights: The weights.
        on: Whether this round is looked at.
    """

    def __init__(self, weights: Sequence[Weight]) -> None:
        """A round begins.

        Args:
            weights: In the order of the model.
        """
        self.weights, self.on = weights, True
        self._turn = 0
        self._before = dict[int, tuple[Tensor, Tensor | None]]()
        self._found = dict[int, Tensor]()

    @property
    def begins(self) -> bool:
        """Whether the coming step is the first of a round."""
        return self._turn == 0

    def before(self, optimizer: Optimizer) -> None:
        """Copy what the coming step of an optimizer will change; once a step.

        Args:
            optimizer: The optimizer.
        """
        for number in range(self._turn, len(self.weights), ROUND) if self.on else ():
            weight = self.weights[number]
            if weight.optimizer is optimizer and number not in self._before:
                gradient = weight.gradient()
                self._before[number] = weight.piece().clone(), None if gradient is None else gradient.clone()

    def after(self) -> Tensor | None:
        """Look at what the step has changed.

        Returns:
            At the end of a round, shape (weights, 4), nan where there was no step or no gradient; else None.
        """
        for number, (before, gradient) in self._before.items():
            weight = self.weights[number]
            self._found[number] = moved(weight.piece(), before, gradient) * weight.scale
        self._before.clear()
        self._turn = (self._turn + 1) % ROUND
        if self._turn or not self._found:
            return None
        found, self._found = self._found, {}
        unknown = torch.full_like(next(iter(found.values())), torch.nan)
        return torch.stack([found.get(number, unknown).to(unknown.device) for number in range(len(self.weights))])


def moved(now: Tensor, before: Tensor, gradient: Tensor | None) -> Tensor:
    """|W|^2, |dW|^2, |g|^2 and <dW, g> of one weight, shape (4,); the last two are nan without a gradient.

    Args:
        now: W after the step, (n,).
        before: W before it, (n,).
        gradient: g, (n,).

    Returns:
        The numbers, in single precision.
    """
    before = before.float()
    step = now.float() - before
    sums = [before.dot(before), step.dot(step)]
    if gradient is None:
        sums += [torch.full_like(sums[0], torch.nan)] * 2
    else:
        gradient = gradient.float()
        sums += [gradient.dot(gradient), step.dot(gradient)]
    return torch.stack(sums)
