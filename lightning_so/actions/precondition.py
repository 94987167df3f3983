"""*Precondition*: `g <- nu u` before the base's step, u = P g in the base's own unit, nu one bound for all blocks.

    u = P g / (r n)                    r the base's largest rate so far, n by how many terms' losses the loss is larger
    nu = min(1, max(equal, near))
    equal = 1/2 sum r |g|^2 / sum r <u, g>             what half of SGD's own step promises is always allowed
    near = sqrt(kappa L / sum r <u, g>)                r <u, g> is d' F d, d = -r u, in the unit of the loss L

With F the Gauss-Newton matrix `r <u, g>` is twice what the quadratic model of the loss loses by the curvature of the
step: kappa is the part of the loss that it may be. Where F is of the labels at hand it shrinks with their gradients and
is no curvature: there nu is the smaller of both, and at least what keeps every direction below SGD's own step.

Of a damping in absolute units u is P g and what bends n r^2 <u, g>. There `near` alone bounds, whatever SGD's step
promises: the rate may be any. A loss that is not positive, or was never shown, counts as 1 there.

All of it is computed on the device, once a step, and in sums over blocks; schedules that lower the rate shorten the
step as they shorten SGD's. Source: the bound by the quadratic model is Martens and Grosse 2015, arXiv 1503.05671,
section 6.5, as used since Ba et al. 2017; that by SGD's own promise and the units are this project's.

Legend: k blocks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

#: The part of what SGD's own step promises that is always allowed.
SHARE = 0.5


@dataclass(frozen=True)
class Footing:
    """What bounds the steps of k blocks.

    Attributes:
        rate: r of each, shape (k,).
        unit: n of each.
        level: L, what is known of the loss by each block; 0 where it is not.
        given: How far F is of the labels at hand.
        pace: r n where P g is divided by it; None where P g is taken as it is.
        least: The smallest nu where F is no curvature.
    """

    rate: Tensor
    unit: Tensor
    level: Tensor
    given: Tensor
    pace: Tensor | None
    least: float


class Clip:
    """Adds up what bounds the step of preconditioned gradients, and scales them once; unbounded it does nothing."""

    #: Numbers that ranks sum: what is promised, what bends, levels, their count, labels at hand, what SGD promises.
    NUMBERS = 6

    def __init__(self, bound: float | None) -> None:
        """Start at zero; `bound` is kappa."""
        self.bound, self._grads, self.least = bound, list[Tensor](), 0.0
        self._of_base, self._of_blocks = list[Tensor](), list[Tensor]()

    def hold(self, grads: list[Tensor], squares: Tensor, footing: Footing) -> None:
        """Take gradients that `apply` scales, before they are preconditioned.

        Args:
            grads: The gradients.
            squares: `|g|^2` of each block, (k,), this rank's part of them.
            footing: What bounds them.
        """
        self._grads += grads
        self.least = max(self.least, footing.least)
        if footing.pace is not None:
            self._of_base.append(torch.linalg.vecdot(squares.to(footing.rate), footing.rate))

    def add(self, products: Tensor, footing: Footing) -> None:
        """Count a batch, where it is whole.

        Args:
            products: `<u, g>` of each block, (k,).
            footing: What bounds them.
        """
        if self.bound is None:
            return
        promised = products * footing.rate
        bends = promised if footing.pace is not None else promised * footing.rate * footing.unit
        known = torch.stack([promised, bends, footing.level, torch.ones_like(promised), footing.given])
        self._of_blocks.append(known.sum(1))

    @property
    def bounds(self) -> bool:
        """Whether there is something to scale."""
        return self.bound is not None and bool(self._grads)

    @property
    def device(self) -> torch.device:
        """Where the gradients are."""
        return self._grads[0].device

    def total(self, device: torch.device) -> Tensor:
        """The sums so far, shape (`NUMBERS`,)."""
        place = {"dtype": torch.promote_types(self._grads[0].dtype, torch.float32), "device": device}
        zeros = torch.zeros(self.NUMBERS, **place).split([self.NUMBERS - 1, 1])
        of_blocks = torch.stack([zeros[0], *(part.to(zeros[0]) for part in self._of_blocks)]).sum(0)
        of_base = torch.cat([zeros[1], *(part.to(zeros[1])[None] for part in self._of_base)]).sum()
        return torch.cat([of_blocks, of_base[None]])

    def apply(self, total: Tensor) -> None:
        """Scale, by the sums over all blocks."""
        assert self.bound is not None
        torch._foreach_mul_(self._grads, factor(total, self.bound, self.least))


def factor(total: Tensor, bound: float, least: float) -> Tensor:
    """nu, a scalar.

    Args:
        total: The sums of a clip over all ranks.
        bound: kappa.
        least: The smallest nu where F is no curvature.

    Returns:
        A number above zero, at most 1.
    """
    promised, bends, levels, count, given, base = total.unbind()
    tiny = torch.finfo(total.dtype).tiny
    equal = SHARE * base / promised.clamp_min(tiny)
    level = levels / count.clamp_min(1)
    alone = base <= 0
    level = torch.where(alone & (level <= 0), 1.0, level.clamp_min(0))
    near = (bound * level / bends.clamp_min(tiny)).sqrt()
    # A loss that is not positive, or was never shown, is no measure.
    smaller = torch.where(level > 0, torch.minimum(equal, near), equal).clamp_min(least)
    of_both = torch.where(given > 0, smaller, torch.maximum(equal, near))
    return torch.where(alone, near, of_both).clamp_max(1.0)
