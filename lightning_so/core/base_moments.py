"""What a base optimizer of the Adam family keeps and is told, as vectors of the space."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_so.core.whole import Whole


class Moments:
    """Views of an optimizer's state and settings; nothing of it is changed."""

    def __init__(self, whole: Whole, optimizer: Optimizer) -> None:
        """Remember where they are.

        Args:
            whole: The parameters.
            optimizer: The base.
        """
        self._whole, self._optimizer = whole, optimizer
        groups = whole.access.groups(optimizer)
        self._count, numbers = len(groups), {id(p): n for n, group in enumerate(groups) for p in group["params"]}
        self._groups = [numbers[id(param)] for param in whole.params]

    def setting(self, name: str, place: int | None = None) -> float | Tensor:
        """A hyper-parameter: one number where all groups have the same, else one a weight, shape (n,).

        Args:
            name: Its key in the param groups.
            place: Which of a tuple's, as of "betas".

        Returns:
            The number, or the vector.
        """
        groups = [self._group(number) for number in range(self._count)]
        found = [float(g[name] if place is None else g[name][place]) for g in groups]
        mine = [found[number] for number in self._groups]
        if len(set(mine)) == 1:
            return mine[0]
        space = self._whole.space
        sizes = torch.tensor([piece.count for piece in space.pieces], device=space.device)
        return torch.tensor(mine, dtype=space.dtype, device=space.device).repeat_interleave(sizes)

    def first(self) -> Tensor:
        """The first moment of an Adam after its step, without its bias: `exp_avg / (1 - beta^t)`, shape (n,)."""
        whole, optimizer = self._whole, self._optimizer
        pieces = []
        for param, number in zip(whole.params, self._groups, strict=True):
            state = whole.access.state(optimizer, param)
            beta = float(self._group(number)["betas"][0])
            # A parameter that never had a gradient has no state.
            pieces.append(state["exp_avg"] / (1 - beta ** float(state["step"])) if state else None)
        return whole.flat(pieces)

    def _group(self, number: int) -> dict[str, Any]:
        return self._whole.access.group(self._optimizer, number)
