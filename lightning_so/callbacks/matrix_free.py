"""The callback of methods on the whole parameter vector: behind the optimizer's step, whatever makes it."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.callbacks import strategies
from lightning_so.callbacks.following import current
from lightning_so.callbacks.names import Callback
from lightning_so.callbacks.replay import Replay
from lightning_so.callbacks.standing import StandIn, ending
from lightning_so.comm import unsynced
from lightning_so.contract.vector_method import VectorMethod
from lightning_so.core.vector.engine import VectorEngine
from lightning_so.core.vector.rewound import Again
from lightning_so.errors import ConfigError, check_choice
from lightning_so.linalg.products import PRODUCTS
from lightning_so.probe.parameters import ParameterVector
from lightning_so.probe.side_effects import random_state


@dataclass(frozen=True)
class Replayed:
    """See `rewound.Again`."""

    replayed: Callable[[], Tensor]
    model: nn.Module
    vector: ParameterVector

    def gradient(self, local: bool, /) -> Tensor:
        """See `Again.gradient`."""
        with unsynced(self.model) if local else nullcontext():
            return self.vector.gradient(self.replayed)

    def loss(self, local: bool, /) -> Tensor:
        """See `Again.loss`."""
        with unsynced(self.model) if local else nullcontext():
            return self.replayed()


class MatrixFree(Callback):
    """Put a method on the whole parameter vector behind the optimizer: it changes the step that the optimizer makes.

    The optimizer sees its own gradients and keeps its own moments; clipping, schedules, accumulation, bf16 and
    `SecondOrder` beside it work as they do without. What a method evaluates besides, it evaluates on the step's last
    micro-batch with its random numbers; gradients, buffers, metrics, logged values and generators are put back. Works
    in one process, under DDP, FSDP2, FSDP1 and DeepSpeed (`strategy="deepspeed_so_stage_2"` and the like).

    Attributes:
        engine: What does the work; None before training starts.

    Args:
        method: `FewDirections()`, `OGR()`, `AutoStep()` or `QuadraticModel()`; `NewtonCG()`, `SaddleFreeKrylov()` or
            `LevenbergMarquardt()`; `Nystrom()`; `AdaHessian()` or `Sophia()`.
        parallel: Have each rank probe a direction of its own, on its part of the batch (DDP): as many directions in the
            time of one as there are ranks, each measured on less data. Results then depend on the number of ranks.
        verbose: Print what will be done, and at the first evaluation how products are taken, and why.
        product: How products are taken: by "difference" of gradients, which goes with everything and is several times
            too large where gradients jump, as with ReLU; "exact", by double backward, of whole parameters and kernels
            that have one; "auto", exact where that exists. A product is 1 to 2 evaluations by difference, 2 exactly.

    Raises:
        ConfigError: If it is none of them, or an argument is out of range.

    Example:
        >>> from lightning_so import FewDirections, MatrixFree
        >>> MatrixFree(FewDirections(k=2)).method.k
        2
    """

    def __init__(
        self, method: VectorMethod, parallel: bool = False, verbose: bool = True, product: str = "difference"
    ) -> None:
        """Check the arguments; everything else happens when training starts."""
        if not isinstance(method, VectorMethod):
            raise ConfigError(
                f"MatrixFree: {type(method).__name__} is no method on the whole parameter vector. Use FewDirections(), "
                "OGR(), AutoStep(), QuadraticModel(), NewtonCG(), SaddleFreeKrylov(), LevenbergMarquardt(), Nystrom(), "
                "AdaHessian() or Sophia(); methods on layers and matrices go into SecondOrder(...)."
            )
        check_choice("MatrixFree", "product", product, PRODUCTS)
        self.method, self.parallel, self.verbose, self.product = method, parallel, verbose, product
        self._forget()
        self._clear()

    def _clear(self) -> None:
        self.engine: VectorEngine | None = None
        self._replay: Replay | None = None
        self._standing = list[StandIn]()
        self._batch: tuple[Any, int, tuple[Any, ...] | None] | None = None

    @property
    def state_key(self) -> str:
        """The key in checkpoints."""
        return "lightning_so.MatrixFree"

    # ---------------------------------------------------------------- start and end

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work before anything is set up."""
        if self._read:  # by a run that ended before it used it
            self._forget()
        if stage != "fit":
            return
        if strategies.is_deepspeed(trainer.strategy) and not getattr(trainer.strategy, "for_second_order", False):
            raise ConfigError(
                f"MatrixFree runs under DeepSpeed with {strategies.DEEPSPEED}, which divides the loss once; the "
                f"Trainer has {type(trainer.strategy).__name__}. Use strategy='deepspeed_so_stage_2' (1, 2 or 3)."
            )
        if not pl_module.automatic_optimization:
            raise ConfigError(
                "MatrixFree: with manual optimization training_step steps the optimizers itself, and cannot be run "
                "again. Use automatic optimization, or `attach` in a loop of your own."
            )
        if strategies.scaler(trainer) is not None:
            raise ConfigError("MatrixFree: gradients carry a GradScaler's scale with 16-mixed. Use 'bf16-mixed'.")

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Make the engine, once the optimizers are there."""
        self._unhook()
        if self.engine is not None:
            self.engine.vector.comm.close()
        optimizers = strategies.optimizers(trainer, "MatrixFree")
        if len(optimizers) != 1:
            raise ConfigError(f"MatrixFree works with one optimizer; configure_optimizers gave {len(optimizers)}.")
        optimizer, deepspeed = optimizers[0], strategies.deepspeed_engine(trainer)
        engine = VectorEngine(
            trainer.strategy.model,
            pl_module.named_parameters(),
            optimizer,
            self.method,
            parallel=self.parallel,
            product=self.product,
            deepspeed=deepspeed,
        )
        bound = trainer.gradient_clip_val or (deepspeed and deepspeed.gradient_clipping())
        if self.method.owns == "step" and bound:
            raise ConfigError(
                f"MatrixFree: {type(self.method).__name__} makes the step itself, and gradient_clip_val={bound} would "
                f"do nothing: leave it out."
            )
        if self._loaded is not None:
            engine.load_state_dict(self._loaded)
            self._forget()
        engine.stand_behind(strategies.engines(trainer))
        self.engine, self._replay = engine, Replay(trainer, pl_module, engine.vector)
        if self.verbose:
            engine.memory.tell = rank_zero_only(print)
            engine.memory.tell(f"MatrixFree: {engine.plan}")
        self._wrap(trainer)

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Give back what was set up, and forget what another stage than fit has read."""
        if stage != "fit":
            self._forget()
        self._unhook()

    # ---------------------------------------------------------------- one step

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        """Remember what a step that evaluates is about."""
        self._catch_up(trainer, pl_module)
        probes = self.engine is not None and self.engine.probes()
        self._batch = batch, batch_idx, random_state() if probes else None

    def on_after_backward(self, trainer: Any, pl_module: nn.Module) -> None:
        """Remember the gradient, before anything is done to it."""
        if self.engine is not None and strategies.steps_now(trainer):
            self.engine.saw()

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Optimizer) -> None:
        """Keep what is not finite from the optimizer, after all who change gradients."""
        if self.engine is not None and strategies.steps_now(trainer):
            self.engine.admit()

    def _catch_up(self, trainer: Any, pl_module: nn.Module) -> None:
        """Between steps: begin anew for another optimizer or other parameters."""
        if (
            self.engine is not None
            and self._standing
            and (current(trainer) != [self.engine.optimizer] or not self.engine.fits)
        ):
            warnings.warn(
                f"the optimizer or its parameters were replaced or added to: {type(self.method).__name__} begins anew.",
                stacklevel=2,
            )
            self.on_train_start(trainer, pl_module)

    def _wrap(self, trainer: Any) -> None:
        """Stand around the step, and around `SecondOrder`, whose hooks are in it."""
        engine = self.engine
        assert engine is not None

        def step(original: Callable[..., Any]) -> Callable[..., Any]:
            def optimizer_step(*args: Any, **kwargs: Any) -> Any:
                engine.begin()
                try:
                    found = original(*args, **kwargs)
                finally:
                    engine.restore()
                self._finish(trainer)
                return found

            return optimizer_step

        strategy = trainer.strategy
        self._standing = [StandIn(strategy, "optimizer_step", step), ending(strategy, self._unhook)]

    def _finish(self, trainer: Any) -> None:
        """The optimizer has stepped."""
        assert self.engine is not None
        assert self._replay is not None
        assert self._batch is not None
        engine = self.engine
        replay, (batch, index, state), recorders = self._replay, self._batch, engine.recorders
        half = strategies.half(trainer, engine.vector.weights)

        @contextmanager
        def replays() -> Iterator[Again]:
            with replay.of(batch, index, state or random_state(), recorders) as loss:
                yield Replayed(loss, trainer.strategy.model, engine.vector)

        engine.finish(
            replays,
            same=trainer.accumulate_grad_batches == 1 and not half,
            half=half,
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what the method says."""
        self._batch = None
        every = trainer.log_every_n_steps
        if self.engine is None or not every or trainer.global_step % every:
            return
        pl_module.log_dict(self.engine.scalars())

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers; before training starts, what a checkpoint has brought."""
        if self.engine is None:
            return {"engine": self._loaded}
        return {"engine": self.engine.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until training starts; while it runs, go on from it."""
        self._loaded = state_dict["engine"]
        if self._standing and self.engine is not None:
            self.engine.load_state_dict(state_dict["engine"])
            self._forget()

    def on_load_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Note that a Trainer reads a state, for its own run."""
        self._read = True

    def _forget(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._read = False

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a running fit, so that the callback can be pickled and copied."""
        return {name: self.__dict__[name] for name in ("method", "parallel", "verbose", "product", "_loaded", "_read")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is not part of the fit."""
        self.__dict__.update(state)
        self._clear()

    # ---------------------------------------------------------------- inside

    def _unhook(self) -> None:
        for standing in self._standing:
            standing.release()
        self._standing = []
