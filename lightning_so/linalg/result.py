"""The outcome of a solve: numerical failure is data, never an exception."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Result:
    """What a solve returned.

    Attributes:
        value: The solved tensor; meaningless unless `ok`.
        ok: Whether `value` is finite and may replace the last one.
        order: The permutation of the columns that the solve applied, shape (n,), or None.
        attempts: Rungs of the failure ladder that were tried (1 = the plain solve worked).
        iterations: Steps that an iteration took; 0 where there is none.
        residual: Largest entry of what should be zero, relative; 0 where it is not measured.
    """

    value: Tensor
    ok: bool
    order: Tensor | None = None
    attempts: int = 1
    iterations: int = 0
    residual: float = 0.0


@dataclass(frozen=True)
class Solved:
    """What a solve of k units of one kind returned; the host has read nothing of it.

    Attributes:
        value: The solved tensors, shape (k, ...); those that are not `good` are meaningless.
        good: Which may replace the last ones, shape (k,), bool.
        order: The permutations of the columns that the solves applied, shape (k, n), or None.
    """

    value: Tensor
    good: Tensor
    order: Tensor | None = None

    @classmethod
    def of(cls, results: Sequence[Result]) -> "Solved":
        """Results that the host knows, as one."""
        value = torch.stack([result.value for result in results])
        good = torch.tensor([result.ok for result in results], device=value.device)
        orders = [result.order for result in results]
        known = next((order for order in orders if order is not None), None)
        if known is None:
            return cls(value, good)
        same = torch.arange(len(known), device=value.device)  # One that failed permutes nothing.
        return cls(value, good, torch.stack([same if order is None else order for order in orders]))

    def some(self, flags: Sequence[bool]) -> "Solved":
        """Those of the units that are flagged."""
        if all(flags):
            return self
        chosen = torch.tensor([at for at, flag in enumerate(flags) if flag], device=self.good.device)
        return Solved(self.value[chosen], self.good[chosen], None if self.order is None else self.order[chosen])

    def replace(self, places: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """Write what is good into its places, in one call.

        Args:
            places: Of each unit, the tensors that its value is one after the other; the same shapes of all units.

        Returns:
            What was there before, and what is there now, flat, shapes (k, n).
        """
        before = torch.cat([tensor.reshape(-1) for of_unit in places for tensor in of_unit]).view(len(places), -1)
        before = before.to(self.value.dtype)  # Bases may be kept in fewer digits.
        now = torch.where(self.good[:, None], self.value.reshape(before.shape), before)
        sizes = [tensor.numel() for tensor in places[0]]
        parts = [part for of_unit in now.unbind(0) for part in of_unit.split(sizes)]
        places_flat = [tensor for of_unit in places for tensor in of_unit]
        torch._foreach_copy_(places_flat, [part.view(to.shape) for part, to in zip(parts, places_flat, strict=True)])
        return before, now

    def kept(self) -> "Solved":
        """The same, where those that failed permute nothing."""
        if self.order is None:
            return self
        same = torch.arange(self.order.shape[1], device=self.order.device)
        return replace(self, order=torch.where(self.good[:, None], self.order, same))
