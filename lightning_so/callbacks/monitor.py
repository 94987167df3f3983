"""Watch the curvature of a training and the health of its layers, and change nothing."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_so.callbacks import factor_watch, strategies
from lightning_so.callbacks.probing import CurvatureProbe
from lightning_so.callbacks.step_watch import StepWatch
from lightning_so.errors import ConfigError, check_count
from lightning_so.linalg.products import BlockProduct
from lightning_so.monitor.extremes import Extremes, extremes
from lightning_so.monitor.factors import FactorHealth
from lightning_so.monitor.illness import Ill
from lightning_so.monitor.layers import layers as layers_of
from lightning_so.monitor.over_time import remember

#: Looks at a step for one at the Hessian, which costs about as much as twenty gradients.
OFTENER = 10


class CurvatureMonitor(CurvatureProbe):
    """Log the curvature of the loss and the health of layers, and change nothing.

    Weights are those of a run without it, bit for bit. Every so many steps of the optimizer, Lanczos takes a few
    products with the Hessian of the last micro-batch's loss, by double backward through the real training step where
    that exists, else by differences of its gradients. Logged are `curv/lambda_max` and `curv/lambda_min`, `curv/trace`,
    `curv/neg_mass` (the share of a random direction with negative curvature), `curv/lr_x_lambda` (of plain gradient
    descent: unstable above 2) and `curv/distance` (to the model's extremum along the top direction); with `top`, the
    largest eigenvalues behind the first, `curv/lambda_2` and so on.

    Of the step itself: `curv/noise_scale`, the batch in samples above which gradients are more signal than noise;
    `curv/cosine` of the step and of descent, and its least over layers; the largest trust ratio. Of the factors that
    `SecondOrder` keeps, a block a look in turn: effective rank and condition. Of layers: dead and saturated units,
    collapsed ranks and exploding activations: extremes as `health/dead_max` and so on, by name where a layer is ill.

    With `layers`, `curv/lambda_max/<layer>` and `curv/lambda_min/<layer>` are those of the layer's diagonal block: one
    layer a look, in turn, at the price of a second look; of n layers each is seen every n looks. Cosine and trust ratio
    of these layers are logged at every look.

    Works with any optimizer, with and without `SecondOrder`, in one process, under DDP, FSDP2, FSDP1 and
    DeepSpeed's ZeRO; with `products=0`, which leaves the Hessian out, under manual optimization too.

    Attributes:
        last: What was seen last; None before.
        last_of: What was seen last of each layer that has had its turn.
        spectra: The spectral density at up to 200 looks of the whole run, as recordings hold it.
        factors: Factors that were seen, by block.

    Args:
        every: Steps between two looks at the Hessian. Steps and health are looked at ten times as often.
        products: Products a probe; each costs about a forward and backward pass by differences, 2.5 of them by double
            backward, which is exact. 0 for none.
        layers: Globs of layers' names, such as `["*"]` or `["net.blocks.*"]`; none by default.
        product: "exact" (by double backward), "difference", or "auto": exact where that exists.
        verbose: Print at the first look how products are taken, and why.
        top: How many of the largest eigenvalues.
        probes: Random starts of Lanczos a look; trace and density are their means.

    Raises:
        ConfigError: If an argument is out of range; at the start of the training, if a glob fits no layer.

    Example:
        >>> CurvatureMonitor(every=50).products
        8
    """

    def __init__(
        self,
        every: int = 1000,
        products: int = 8,
        layers: str | Sequence[str] = (),
        product: str = "auto",
        verbose: bool = True,
        top: int = 1,
        probes: int = 1,
    ) -> None:
        """Check the arguments."""
        super().__init__(every, verbose, product)
        check_count("CurvatureMonitor", "products", products, 0, 1000)
        check_count("CurvatureMonitor", "top", top, 1, max(products, 1))
        check_count("CurvatureMonitor", "probes", probes, 1, 100)
        self.products, self.top, self.probes = products, top, probes
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        self.last: Extremes | None = None
        self.last_of: dict[str, Extremes] = {}
        self.spectra: list[dict[str, Any]] = []
        self.factors: dict[str, FactorHealth] = {}
        self._turns: list[tuple[str, list[int]]] = []
        self._watch: StepWatch | None = None
        self._told: dict[str, float] = {}

    @property
    def watch(self) -> StepWatch:
        """What is seen of steps and of layers' health, once a fit has begun."""
        assert self._watch is not None
        return self._watch

    @property
    def ill(self) -> list[Ill]:
        """The layers that were ill at the last look."""
        return [] if self._watch is None else self._watch.ill

    # ---------------------------------------------------------------- start and end

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse products with manual optimization."""
        if stage == "fit" and not pl_module.automatic_optimization and self.products:
            raise ConfigError(
                f"CurvatureMonitor(products={self.products}): with manual optimization training_step steps the "
                f"optimizers itself, and cannot be run again to take products. Use products=0, which looks at steps "
                f"and at the health of layers, or lightning_so.linalg.lanczos with a loss of your own."
            )

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Find the layers."""
        super().on_train_start(trainer, pl_module)
        names = [piece.name for piece in self.vector.space.pieces]
        self._turns = list(layers_of(names, self.layers, self._name).items())
        self._watch = StepWatch(pl_module, max(1, self.every // OFTENER))

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Give back what was set up."""
        if self._watch is not None:
            self._watch.close()
        super().teardown(trainer, pl_module, stage)

    # ---------------------------------------------------------------- one step

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        """Begin to watch a step that is looked at."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.watch.due(trainer.global_step):
            self._follow(trainer, pl_module)
            self.watch.begin(trainer, self.vector)

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Any) -> None:
        """Keep the gradient of a step that is looked at."""
        self.watch.before_step(trainer, self.vector, optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look, once the optimizer has stepped, and log what was seen."""
        self._told = self.watch.end(trainer, self.vector, batch)
        if self._told:
            self._look_at_factors(trainer)
            for name, _ in self._turns:
                if (step := self.watch.steps.get(name)) and math.isfinite(step.cosine):
                    self._told |= {f"curv/cosine/{name}": step.cosine, f"curv/trust_ratio/{name}": step.trust}
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._told:
            self.tell(trainer, self._told)
            shown = "curv/lr_x_lambda" if self.products else "health/ill"
            if shown in self._told:
                pl_module.log(shown, self._told[shown], prog_bar=True, logger=False)

    def wants(self, trainer: Any) -> bool:
        """See `CurvatureProbe.wants`: whether products are taken."""
        return self.products > 0

    def look(self, trainer: Any, product: BlockProduct, gradient: Tensor) -> None:
        """See `CurvatureProbe.look`: a few steps of Lanczos."""
        space, step = self.vector.space, trainer.global_step
        asked = {"steps": self.products, "seed": step}
        self.last = extremes(product, gradient, space, **asked, top=self.top, probes=self.probes)
        if self.last is not None:
            rate = float(trainer.optimizers[0].param_groups[0]["lr"])
            self._told |= self.last.scalars(rate)
            remember(self.spectra, self.last, step=step, lr=rate, noise_scale=self.watch.noise_scale)
        if self._turns:
            # By the step alone: equal on all ranks, and after a resume.
            name, numbers = self._turns[(step // self.every - 1) % len(self._turns)]
            part = space.part(gradient, numbers)
            seen = extremes(product.block(numbers), part, space.block(numbers), **asked)
            if seen is not None:
                self.last_of[name] = seen
                self._told |= {f"curv/lambda_max/{name}": seen.top, f"curv/lambda_min/{name}": seen.bottom}

    def _look_at_factors(self, trainer: Any) -> None:
        """Look at the factors of the block whose turn it is."""
        turn = trainer.global_step // self.watch.every - 1
        if seen := factor_watch.look(strategies.engines(trainer), turn):
            self.factors[seen[0]] = seen[1]
        if self.factors:
            self._told["curv/factor_rank_min"] = min(each.rank for each in self.factors.values())
            self._told["curv/factor_condition_max"] = max(each.condition for each in self.factors.values())
