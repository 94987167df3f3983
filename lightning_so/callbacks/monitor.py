"""Watch the curvature of a training, and change nothing."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_so.callbacks.probing import CurvatureProbe
from lightning_so.errors import check_count
from lightning_so.linalg.products import BlockProduct
from lightning_so.monitor.extremes import Extremes, extremes
from lightning_so.monitor.layers import layers as layers_of


class CurvatureMonitor(CurvatureProbe):
    """Log the extreme curvatures of the loss, and change nothing: weights are those of a run without it, bit for bit.

    Every so many steps of the optimizer, Lanczos takes a few products with the Hessian of the last micro-batch's loss,
    by double backward through the real training step where that exists, else by differences of its gradients. Logged
    are `curv/lambda_max` and `curv/lambda_min`, `curv/neg_mass` (the share of a random direction with negative
    curvature), `curv/lr_x_lambda` (of plain gradient descent: unstable above 2) and `curv/distance` (to the model's
    extremum along the top direction).

    With `layers`, `curv/lambda_max/<layer>` and `curv/lambda_min/<layer>` are those of the layer's diagonal block: one
    layer a look, in turn, at the price of a second look; of n layers each is seen every n looks.

    Works with any optimizer, with and without `SecondOrder`, in one process, under DDP, FSDP2, FSDP1 and
    DeepSpeed's ZeRO.

    Attributes:
        last: What was seen last; None before.
        last_of: What was seen last of each layer that has had its turn.

    Args:
        every: Steps between two looks.
        products: Products a look; each costs about a forward and backward pass by differences, 2.5 of them by double
            backward, which is exact.
        layers: Globs of layers' names, such as `["*"]` or `["net.blocks.*"]`; none by default.
        product: "exact" (by double backward), "difference", or "auto": exact where that exists.
        verbose: Print at the first look how products are taken, and why.

    Raises:
        ConfigError: If an argument is out of range; at the start of the training, if a glob fits no layer.

    Example:
        >>> CurvatureMonitor(every=50).products
        8
    """

    def __init__(
        self,
        every: int = 100,
        products: int = 8,
        layers: str | Sequence[str] = (),
        product: str = "auto",
        verbose: bool = True,
    ) -> None:
        """Check the arguments."""
        super().__init__(every, verbose, product)
        check_count("CurvatureMonitor", "products", products, 1, 1000)
        self.products = products
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        self.last: Extremes | None = None
        self.last_of: dict[str, Extremes] = {}
        self._turns: list[tuple[str, list[int]]] = []

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Find the layers."""
        super().on_train_start(trainer, pl_module)
        names = [piece.name for piece in self.vector.space.pieces]
        self._turns = list(layers_of(names, self.layers, self._name).items())

    def look(self, trainer: Any, product: BlockProduct, gradient: Tensor) -> None:
        """See `CurvatureProbe.look`: a few steps of Lanczos, logged."""
        space, step = self.vector.space, trainer.global_step
        self.last = extremes(product, gradient, space, steps=self.products, seed=step)
        told = {} if self.last is None else self.last.scalars(float(trainer.optimizers[0].param_groups[0]["lr"]))
        if self._turns:
            # By the step alone: equal on all ranks, and after a resume.
            name, numbers = self._turns[(step // self.every - 1) % len(self._turns)]
            part = space.part(gradient, numbers)
            seen = extremes(product.block(numbers), part, space.block(numbers), steps=self.products, seed=step)
            if seen is not None:
                self.last_of[name] = seen
                told |= {f"curv/lambda_max/{name}": seen.top, f"curv/lambda_min/{name}": seen.bottom}
        if told:
            self.tell(trainer, told)
