"""Watch the curvature of a training, and change nothing."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_so.callbacks.looking import Looking
from lightning_so.core.errors import check_count
from lightning_so.monitor.sight import Sight, sight


class CurvatureMonitor(Looking):
    """Log the extreme curvatures of the loss, and change nothing: weights are those of a run without it, bit for bit.

    Every so many steps of the optimizer, Lanczos takes a few products with the Hessian of the last micro-batch's loss,
    by differences of gradients of the real training step. Logged are `curv/lambda_max` and `curv/lambda_min`,
    `curv/neg_mass` (the share of a random direction with negative curvature), `curv/lr_x_lambda` (of plain gradient
    descent: unstable above 2) and `curv/distance` (to the model's extremum along the top direction).

    Works with any optimizer, with and without `SecondOrder`, in one process, under DDP, FSDP2 and FSDP1.

    Attributes:
        last: What was seen last; None before.

    Args:
        every: Steps between two looks.
        products: Products a look; each costs about a forward and backward pass.
        verbose: Print at the first look how products are taken, and why.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> CurvatureMonitor(every=50).products
        8
    """

    def __init__(self, every: int = 100, products: int = 8, verbose: bool = True) -> None:
        """Check the arguments."""
        super().__init__(every, verbose)
        check_count("CurvatureMonitor", "products", products, 1, 1000)
        self.products = products
        self.last: Sight | None = None

    def look(self, trainer: Any, product: Callable[[Tensor], Tensor], gradient: Tensor) -> None:
        """See `Looking.look`: a few steps of Lanczos, logged."""
        self.last = sight(product, gradient, self.whole.space, steps=self.products, seed=trainer.global_step)
        if self.last is None:
            return
        self.tell(trainer, self.last.scalars(float(trainer.optimizers[0].param_groups[0]["lr"])))
