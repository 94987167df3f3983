"""What a base optimizer of the Adam family keeps and is told, as vectors of the space."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from lightning_so.probe.parameters import ParameterVector


class Moments:
    """Views of an optimizer's state and settings; nothing of it is changed.

    Attributes:
        stepped: Of each parameter, whether it had a gradient, so that it is stepped on.
    """

    def __init__(self, vector: ParameterVector, optimizer: Optimizer) -> None:
        """Remember where they are.

        Args:
            vector: The parameters.
            optimizer: The base.
        """
        self._vector, self._optimizer = vector, optimizer
        groups = vector.access.groups(optimizer)
        self._count, numbers = len(groups), {id(p): n for n, group in enumerate(groups) for p in group["params"]}
        self._groups = [numbers[id(param)] for param in vector.params]
        self.stepped = [True] * len(vector.params)

    def saw(self) -> None:
        """Remember which parameters have a gradient, and so are stepped on."""
        self.stepped = [self._vector.access.grad(param) is not None for param in self._vector.params]

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
        return self._spread([found[number] for number in self._groups])

    def decay(self) -> float | Tensor:
        """What a weight loses by decoupled decay, `lr wd` of it, as `setting` gives it; nothing where no step is made.

        Returns:
            The number, or the vector.
        """
        found = []
        for group in map(self._group, range(self._count)):
            decoupled = group.get("decoupled_weight_decay", isinstance(self._optimizer, AdamW))
            found.append(float(group["lr"]) * float(group["weight_decay"]) if decoupled else 0.0)
        return self._spread([found[n] * stepped for n, stepped in zip(self._groups, self.stepped, strict=True)])

    def first(self, *, corrected: bool = True) -> Tensor:
        """The first moment of an Adam after its step, zero where none was made.

        Args:
            corrected: Whether its bias is taken out, `exp_avg / (1 - beta^t)`.

        Returns:
            A new vector, shape (n,).
        """
        vector, optimizer = self._vector, self._optimizer
        pieces = []
        for param, number, stepped in zip(vector.params, self._groups, self.stepped, strict=True):
            # A parameter that never had a gradient has no state.
            state = vector.access.state(optimizer, param) if stepped else {}
            moment = state["exp_avg"] if state else None
            if moment is not None and corrected:
                beta = float(self._group(number)["betas"][0])
                # On the device where the count is: reading it waits.
                moment = moment / (1 - beta ** torch.as_tensor(state["step"]).double())
            pieces.append(moment)
        return vector.flat(pieces)

    def _spread(self, mine: Sequence[float]) -> float | Tensor:
        """Numbers of the parameters: one where they are equal, else one a weight."""
        if len(set(mine)) == 1:
            return mine[0]
        space = self._vector.space
        sizes = torch.tensor([piece.count for piece in space.pieces], device=space.device)
        return torch.tensor(mine, dtype=space.dtype, device=space.device).repeat_interleave(sizes)

    def _group(self, number: int) -> dict[str, Any]:
        return self._vector.access.group(self._optimizer, number)
