"""Watch the curvature of a training, and change nothing."""

from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor, nn

from lightning_so.callbacks import strategies
from lightning_so.callbacks.names import Callback
from lightning_so.callbacks.replay import Replay, random_state
from lightning_so.comm import Local, access_of, ambient
from lightning_so.core.errors import ConfigError, check_range
from lightning_so.core.routing import clean
from lightning_so.core.whole import space_of
from lightning_so.linalg.products import STEPS, FiniteDifference
from lightning_so.linalg.vectors import Space
from lightning_so.monitor.spectrum import Sight, sight

#: Products of two steps that differ by more than this are of a gradient too rough for the smaller one.
ROUGH = 0.05
#: A gradient that is computed twice may differ by this share: some kernels add in another order each time.
AGAIN = 1e-3


class CurvatureMonitor(Callback):
    """Log the extreme curvatures of the loss, and change nothing: weights are those of a run without it, bit for bit.

    Every so many steps of the optimizer, Lanczos takes a few products with the Hessian of the last micro-batch's loss,
    by differences of gradients of the real training step. Logged are `curv/lambda_max` and `curv/lambda_min`,
    `curv/neg_mass` (the share of a random direction with negative curvature), `curv/lr_x_lambda` (of plain gradient
    descent: unstable above 2) and `curv/distance` (to the model's extremum along the top direction).

    Works with any optimizer, with and without `SecondOrder`, in one process, under DDP, FSDP2 and FSDP1.

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
        check_range("CurvatureMonitor", "every", every, 1, 1_000_000_000)
        check_range("CurvatureMonitor", "products", products, 1, 1000)
        self.every, self.products, self.verbose = every, products, verbose
        self.last: Sight | None = None
        self._clear()

    def _clear(self) -> None:
        self._params: list[Tensor] = []
        self._comm: Local | None = None
        self._space: Space | None = None
        self._replay: Replay | None = None
        self._weights: list[Tensor] = []
        self._central: bool | None = None
        self._random: tuple[Any, ...] | None = None
        self._looked = -1

    # ---------------------------------------------------------------- start and end

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be watched."""
        if stage == "fit" and strategies.is_deepspeed(trainer.strategy):
            raise ConfigError(
                "CurvatureMonitor: DeepSpeed keeps the weights that it steps on apart from those of the forward pass, "
                "which would have to be moved together. Watch a short training under DDP or FSDP2."
            )
        if stage == "fit" and not pl_module.automatic_optimization:
            raise ConfigError(
                "CurvatureMonitor: with manual optimization training_step steps the optimizers itself, and cannot be "
                "run again to look. Use lightning_so.linalg.lanczos with a loss of your own."
            )

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Say what the whole vector is: the parameters that are trained."""
        self._clear()
        named = [(clean(name), param) for name, param in pl_module.named_parameters() if param.requires_grad]
        self._params = [param for _, param in named]
        access = access_of(self._params, trainer.strategy.model)
        self._comm = ambient(sharded=access.sharded)
        self._space = space_of(named, access, self._comm)
        self._weights = [access.weight(param) for param in self._params]
        self._replay = Replay(trainer, pl_module, self._params, access, self._space)

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Give back what was set up."""
        if self._comm is not None:
            self._comm.close()
        self._clear()

    # ---------------------------------------------------------------- a look

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        """Remember the random numbers of a step that will be looked at."""
        self._random = random_state() if (trainer.global_step + 1) % self.every == 0 else None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look, once the optimizer has stepped."""
        step = trainer.global_step
        if step % self.every or step == self._looked or self._random is None or self._replay is None:
            return
        self._looked = step
        recorders = [
            recorder
            for callback in trainer.callbacks
            for engine in getattr(callback, "engines", ())
            for recorder in engine.recorders
        ]
        with self._replay.of(batch, batch_idx, self._random, recorders) as gradient:
            self.last = self._look(trainer, gradient)
        if self.last is None:
            return
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        if trainer.logger is not None:
            for logger in trainer.loggers:
                logger.log_metrics(self.last.scalars(rate), step=step)

    def _look(self, trainer: Any, gradient: Any) -> Sight | None:
        assert self._space is not None
        half = "16" in str(trainer.precision)
        step = STEPS[torch.bfloat16 if half else self._space.dtype]
        here = gradient()
        if self._central is None:
            self._central = self._probe(gradient, here, step, half)
        product = FiniteDifference(self._weights, gradient, self._space, step, self._central, here)
        return sight(product, here, self._space, steps=self.products, seed=trainer.global_step)

    def _probe(self, gradient: Any, here: Tensor, step: float, half: bool) -> bool:
        """Choose between forward and central differences, and say why."""
        assert self._space is not None
        space = self._space
        apart, length = space.norm(gradient() - here), space.norm(here)
        if apart > AGAIN * length:
            raise ConfigError(
                f"CurvatureMonitor: the same training step twice, with the same batch, weights and random numbers, "
                f"gave gradients {apart / max(length, 1e-30):.1e} apart: it remembers something (an attribute that it "
                f"writes, a generator of its own). Differences of such gradients are no curvature."
            )
        v = space.normal(0)
        once, twice = (FiniteDifference(self._weights, gradient, space, s, here=here)(v) for s in (step, 2 * step))
        rough = space.norm(once - twice) / max(space.norm(once), 1e-30)
        central = half or not rough <= ROUGH
        if self.verbose:
            why = "half precision" if half else f"steps of {step:.0e} and twice that differ by {rough:.1e}"
            how = "central" if central else "forward"
            rank_zero_only(print)(
                f"CurvatureMonitor: products by {how} differences of gradients ({why}), "
                f"{self.products} every {self.every} steps."
            )
        return central
