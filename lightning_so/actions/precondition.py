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

    def hold(self, grads: list[Tensor]) -> None:
        """Take gradients that `apply` scales."""
        self._grads += grads

    def add(self, products: Tensor, lrs: list[float | Tensor]) -> None:
        """Count a batch.

        Args:
            products: `<P g, g>` of each block, shape (B,).
            lrs: Learning rate of each block.
        """
        if self.bound is not None:
            # Rates that are numbers stay on the host: to make a tensor of one would wait for the device.
            parts = [product * lr**2 for product, lr in zip(products.unbind(), lrs, strict=True)]
            self._total.append(torch.stack(parts).sum())

    @property
    def bounds(self) -> bool:
        """Whether there is something to scale."""
        return self.bound is not None and bool(self._grads)

    @property
    def device(self) -> torch.device:
        """Where the gradients are."""
        return self._grads[0].device

    def total(self, device: torch.device) -> Tensor:
        """The sum so far, a scalar."""
        dtype = torch.promote_types(self._grads[0].dtype, torch.float32)
        zero = torch.zeros((), dtype=dtype, device=device)
        return torch.stack([zero, *(part.to(zero) for part in self._total)]).sum()

    def apply(self, total: Tensor) -> None:
        """Scale, by the sum over all blocks."""
        assert self.bound is not None
        factor = (self.bound / total.clamp_min(torch.finfo(total.dtype).tiny)).sqrt().clamp_max(1.0)
        torch._foreach_mul_(self._grads, factor)
