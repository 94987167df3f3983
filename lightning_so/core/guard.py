"""Which gradients may be used at a step, agreed over ranks; the others are withheld from the base and given back."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_so.comm import Local


class Guard:
    """Admits the gradients of a step, with one host read and, between ranks, one small exchange.

    Attributes:
        withheld: Gradients withheld so far because another rank lacked them.
    """

    def __init__(self, comm: Local) -> None:
        """Nothing is withheld yet."""
        self.comm, self.withheld = comm, 0
        self._held: list[tuple[Tensor, Tensor]] = []

    def admit(self, params: list[Tensor]) -> bool:
        """Whether the step may happen: every gradient, and its square, is finite on every rank.

        If not, all gradients are withheld: the base must neither step nor poison its moments. A gradient that another
        rank lacks is withheld alone.

        Args:
            params: All parameters of the optimizer.

        Returns:
            The verdict, equal on all ranks.
        """
        poisoned = not finite(params)
        if self.comm.ranks > 1:
            flags = [poisoned, *(p.grad is None for p in params)]
            poisoned, *missing = self.comm.anywhere(flags)
            self.withheld += self._withhold(p for p, absent in zip(params, missing, strict=True) if absent)
        if poisoned:
            self._withhold(params)
        return not poisoned

    def wire(self, params: list[Tensor]) -> int:
        """Bytes that a rank sends at each step to agree."""
        return 0 if self.comm.ranks == 1 else 1 + len(params)

    def _withhold(self, params: Iterable[Tensor]) -> int:
        found = [(p, p.grad) for p in params if p.grad is not None]
        for p, _ in found:
            p.grad = None
        self._held += found
        return len(found)

    def give_back(self) -> None:
        """Undo `admit` after the base's step."""
        for p, grad in self._held:
            p.grad = grad
        self._held.clear()


def finite(params: list[Tensor]) -> bool:
    """One host read: whether every gradient, and its square, is finite."""
    grads = [p.grad for p in params if p.grad is not None]
    dense = [g.coalesce().values() if g.is_sparse else g for g in grads]
    dense = [torch.view_as_real(g) if g.is_complex() else g for g in dense if g.numel()]
    if not dense:
        return True
    # The 2-norm also catches gradients whose squares overflow: they would leave the factors infinite for ever.
    norms = torch._foreach_norm([g.float() if g.dtype is torch.float16 else g for g in dense])
    return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())
