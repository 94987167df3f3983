"""Which gradients may be used at a step, agreed over ranks; the others are withheld from the base and given back."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_so.comm import Access, Local


@dataclass(frozen=True)
class Verdict:
    """What ranks have agreed on.

    Attributes:
        admitted: Whether the step may happen.
        absent: Parameters of which a rank lacks its part of the gradient.
        withheld: Gradients that are withheld because another rank lacks them.
        read: The flags that were read.
    """

    admitted: bool
    absent: set[Tensor]
    withheld: int
    read: list[bool]


class Guard:
    """Admits the gradients of a step, with one host read and, between ranks, one small exchange."""

    def __init__(self, world: Local, access: Access) -> None:
        """Nothing is withheld yet."""
        self._world, self._access = world, access
        self._held: list[tuple[Tensor, Any]] = []

    def admit(self, params: list[Tensor], unread: Tensor | None = None) -> Verdict:
        """Whether the step may happen: every gradient, and its square, is finite on every rank.

        If not, all gradients are withheld: the base must neither step nor poison its moments. A gradient that another
        rank lacks is withheld alone.

        Args:
            params: All parameters of the optimizer.
            unread: Flags that the host wants to know as well, shape (n,): they are read with it.

        Returns:
            The verdict, equal on all ranks but for what it withholds.
        """
        grads = [self._access.grad(p) for p in params]
        poisoned, read = _read(unsound([grad for grad in grads if grad is not None]), unread)
        missing = [grad is None and self._access.holds(p) for p, grad in zip(params, grads, strict=True)]
        if self._world.ranks > 1:
            poisoned, *missing = self._world.anywhere([poisoned, *missing])
        absent = {p for p, lacks in zip(params, missing, strict=True) if lacks}
        lacking = zip(params, grads, missing, strict=True)
        withheld = self._withhold(p for p, grad, lacks in lacking if lacks and grad is not None)
        if poisoned:
            self._withhold(p for p in params if self._access.grad(p) is not None)
        return Verdict(not poisoned, absent, withheld, read)

    def _withhold(self, params: Iterable[Tensor]) -> int:
        found = [(p, self._access.withhold(p)) for p in params]
        self._held += found
        return len(found)

    def give_back(self) -> None:
        """Undo `admit` after the base's step."""
        for p, held in self._held:
            self._access.give_back(p, held)
        self._held.clear()


def agreement_bytes(ranks: int, params: int) -> int:
    """Bytes that a rank sends at each step to agree, given the number of parameters."""
    return 0 if ranks == 1 else 1 + params


def finite(grads: list[Tensor]) -> bool:
    """One host read: whether every gradient, and its square, is finite."""
    found = unsound(grads)
    return found is None or not bool(found)


def unsound(grads: list[Tensor]) -> Tensor | None:
    """Whether a gradient, or its square, is not finite: a flag on the device; None where there are none."""
    dense = [g.coalesce().values() if g.is_sparse else g for g in grads]
    dense = [torch.view_as_real(g) if g.is_complex() else g for g in dense if g.numel()]
    if not dense:
        return None
    # The 2-norm also catches gradients whose squares overflow: they would leave the factors infinite for ever.
    norms = torch._foreach_norm([g.float() if g.dtype is torch.float16 else g for g in dense])
    # The largest is NaN where any is.
    return ~(torch.stack([norm.float() for norm in norms]).amax() < torch.inf)


def _read(first: Tensor | None, others: Tensor | None) -> tuple[bool, list[bool]]:
    """A flag and others, which the host reads at once."""
    if others is None:
        return first is not None and bool(first), []
    if first is None:
        return False, others.tolist()
    flag, *flags = torch.cat([first[None], others.to(first.device)]).tolist()
    return flag, flags
