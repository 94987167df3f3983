"""*Precondition*: `g <- nu P g` before the base's step, nu a bound on the step's size in the curvature's metric.

    nu = min(1, sqrt(kappa / sum_blocks lr^2 <P g, g>))

the KL clip of Martens and Grosse 2015 (section 6.5 bounds the step by the same quadratic form) as used since Ba et al.
2017; one factor for all blocks, computed on the device.
"""

import torch
from torch import Tensor


class Clip:
    """Adds up `lr^2 <P g, g>` over blocks and scales their gradients once; without a bound it does nothing."""

    def __init__(self, bound: float | None) -> None:
        """Start at zero; `bound` is kappa."""
        self.bound, self._total, self._grads = bound, list[Tensor](), list[Tensor]()

    def add(self, products: Tensor, lrs: list[float | Tensor], grads: list[Tensor]) -> None:
        """Count a batch.

        Args:
            products: `<P g, g>` of each block, shape (B,).
            lrs: Learning rate of each block.
            grads: The gradients that `apply` scales, which hold P g then.
        """
        if self.bound is None:
            return
        squares = torch.stack([torch.as_tensor(lr, dtype=products.dtype, device=products.device) ** 2 for lr in lrs])
        self._total.append((products * squares).sum())
        self._grads += grads

    def apply(self) -> None:
        """Scale."""
        if self.bound is None or not self._total:
            return
        total = torch.stack([part.to(self._total[0].device) for part in self._total]).sum()
        factor = (self.bound / total.clamp_min(torch.finfo(total.dtype).tiny)).sqrt().clamp_max(1.0)
        torch._foreach_mul_(self._grads, factor)
