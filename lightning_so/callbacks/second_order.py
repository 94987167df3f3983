"""The callback: one line in a Trainer."""

from collections.abc import Callable
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.callbacks import engines, saving, strategies, zero_step
from lightning_so.callbacks.first_steps import FirstSteps
from lightning_so.callbacks.names import Callback
from lightning_so.callbacks.standing import StandIn, ending
from lightning_so.comm import SHARDINGS, Local, ambient
from lightning_so.contract.method import Method
from lightning_so.core.attach.hooks import hooks, innermost
from lightning_so.core.checkpoint import checkpoint, stamp
from lightning_so.core.engine import Engine
from lightning_so.core.options import Checks, Options
from lightning_so.core.plan.mixture import Mixture
from lightning_so.core.telemetry import Telemetry, summary
from lightning_so.errors import ConfigError, StateError, check_choice, check_range

#: How a run goes on from each kind of state.
RESUMED = {
    "full": "exactly as if it had not stopped",
    "compact": "with bases found again from the factors",
    "rebuild": "with cold blocks",
}


class SecondOrder(Callback):
    """Put a second-order method in front of the optimizers of `configure_optimizers`.

    Optimizer, learning rate, schedule, clipping, hooks, accumulation, precision and checkpoints keep working.

    Args:
        method: `SOAP()`, `KFAC()`, `Muon()`, ..., or a `Mixture` of rules.
        route: Overrides, role ("base", "hidden", "embedding", "head") -> globs on parameter names.
        min_coverage: Smallest share of an optimizer's elements that must be covered.
        print_plan: Print where every parameter went when training starts, and what was done when it ends.
        state: What checkpoints carry: "full" (resuming is exact), "compact" (a sixth of its size; blocks go on
            rotating, not bit for bit) or "rebuild" (no curvature; blocks start cold).
        verify_every: Steps between two comparisons of one block's update with a float64 reference; 0 for never.
        compare_every: Steps between two comparisons of the ranks' weights; 0 for never.
        reduction: Whether the loss is a "mean" or a "sum" over samples, where its graph does not tell (K-FAC).
        lag: Steps between a solve and its use, 0 or 1: at 1 its exchange travels behind a forward and backward pass.
        sharding: What a matrix is where ranks hold pieces: "exact", the whole, or "local", each rank's rows (FSDP2).

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> from lightning_so import SOAP, SecondOrder
        >>> SecondOrder(SOAP()).method.start
        50
    """

    def __init__(
        self,
        method: Method | Mixture,
        route: dict[str, list[str]] | None = None,
        min_coverage: float = 0.0,
        print_plan: bool = True,
        state: str = "full",
        verify_every: int = 0,
        compare_every: int = 0,
        reduction: str | None = None,
        lag: int = 0,
        sharding: str = "exact",
    ) -> None:
        """Check the arguments; everything else happens when training starts."""
        Mixture.of(method)
        check_range("SecondOrder", "min_coverage", min_coverage, 0.0, 1.0)
        check_choice("SecondOrder", "state", state, checkpoint.KINDS)
        self.method, self.route, self.min_coverage, self.print_plan = method, route, min_coverage, print_plan
        check_choice("SecondOrder", "reduction", reduction, (None, "mean", "sum"))
        check_choice("SecondOrder", "lag", lag, (0, 1))
        check_choice("SecondOrder", "sharding", sharding, SHARDINGS)
        self.state, self.checks = state, Checks(verify_every, compare_every)
        self.reduction, self.lag, self.sharding = reduction, lag, sharding
        self._loaded: list[dict[str, Any]] | None = None
        self._stamped = False
        self._clear()

    def _clear(self) -> None:
        """Everything that belongs to a running fit."""
        self.engines, self._telemetry, self._hooks = list[Engine](), list[Telemetry](), list[Any]()
        self._alive: FirstSteps | None = None
        self._standing = list[StandIn]()
        self._comm: Local | None = None
        self._around = list[list[Any]]()
        self._told = False

    @property
    def state_key(self) -> str:
        """The key in checkpoints."""
        return "lightning_so.SecondOrder"

    # ---------------------------------------------------------------- start and end

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Refuse what cannot work before anything is set up."""
        twins = [callback for callback in trainer.callbacks if isinstance(callback, SecondOrder)]
        if len(twins) > 1:
            raise ConfigError(f"SecondOrder is in the Trainer's callbacks {len(twins)} times; keep one.")
        strategies.check(trainer)
        for name in strategies.finders(trainer) if stage == "fit" else ():
            rank_zero_warn(
                f"{name} searches without SecondOrder, since Lightning takes all callbacks away meanwhile: a learning "
                f"rate is that of the optimizer alone, and a batch size leaves no room for curvature."
            )

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Make one engine an optimizer, but for those before which no method can work; print the plans, hook in."""
        self._unhook()
        optimizers = strategies.optimizers(trainer, "SecondOrder")
        accesses = [strategies.access(trainer, optimizer, self.sharding) for optimizer in optimizers]
        mixture = Mixture.of(self.method)
        options = Options(mixture, self.route, self.min_coverage, self.checks, self.reduction, self.lag)
        self._comm, self._told = ambient(sharded=any(access.sharded for access in accesses)), False
        self.engines = engines.make(pl_module, optimizers, accesses, self._comm, options, printed=self.print_plan)
        self._wrap(trainer)

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Load what the checkpoint held: here the optimizers have their state under every strategy."""
        for engine in self.engines:
            engine.follow()
        if self._loaded is None:
            for engine in self.engines:
                stamp.check_stamp(engine.optimizer, self._stamped)
        elif len(self._loaded) != len(self.engines):
            raise StateError(f"the checkpoint has {len(self._loaded)} optimizers, this run {len(self.engines)}.")
        else:
            for engine, state in zip(self.engines, self._loaded, strict=True):
                checkpoint.read(engine.parts, state, cold=self.state == "rebuild")
        self._loaded, self._stamped = None, False
        for engine in self.engines:
            # Not before: torch makes the state of FSDP2's optimizers by a step of zeros, into which it loads.
            self._around.append(hooks(engine))
            self._hooks += self._around[-1]
            engine.arm()
        self._hooks += strategies.overlap(trainer, self.engines)
        self._telemetry = [Telemetry(engine) for engine in self.engines]
        self._alive = FirstSteps(self.engines, trainer)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Say what was done; give every rank the factors, so that `curvature` works when the ranks have parted."""
        for engine in self.engines:
            engine.share_factors()
            engine.tell(summary(engine))

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Leave no weight hidden; what callbacks after us need to save a checkpoint stays until `_wrap` undoes it."""
        for engine in self.engines:
            engine.restore()
            engine.disarm()

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Take the hooks back."""
        self._unhook()

    # ---------------------------------------------------------------- one step

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Optimizer) -> None:
        """Have gradients unscaled; what else is ours comes in the optimizer's own step, after all code of the user."""
        engine = self._before(optimizer)
        if engine is None:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        fused = getattr(engine.optimizer, "_step_supports_amp_scaling", False)
        if scaler is not None and fused and any(p.grad is not None for p in engine.host.params):
            # Lightning leaves the scale to a fused step; unscaled here, the step is the same and statistics are right.
            scaler.unscale_(engine.optimizer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Tell taps by what the loss is multiplied and divided."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        divided = trainer.accumulate_grad_batches if pl_module.automatic_optimization else None
        for engine in self.engines:
            if engine.recorders:  # Reading the scale waits for the device.
                scale = scaler.get_scale() if scaler is not None else 1.0
                engine.loss_is(divided=divided, scale=scale, shown=pl_module.automatic_optimization)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Show the loss to the engines that observe layers."""
        for engine in self.engines:
            engine.before_backward(loss)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the report."""
        if self._alive is not None and self._alive.check(trainer):
            self._alive = None
        if not trainer.log_every_n_steps or trainer.global_step % trainer.log_every_n_steps:
            return
        for index, telemetry in enumerate(self._telemetry):
            suffix = f"/{index}" if len(self.engines) > 1 else ""
            values = telemetry.scalars()
            pl_module.log_dict({f"{name}{suffix}": value for name, value in values.items()})
            pl_module.log(f"so%{suffix}", 100 * values["so/overhead_frac"], prog_bar=True, logger=False)

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """One state an optimizer; before training starts, what a checkpoint has brought."""
        if not self.engines and self._loaded is not None:
            return {"engines": self._loaded}
        return {"engines": [checkpoint.write(engine.parts, saving.kind(engine, self.state)) for engine in self.engines]}

    def on_save_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Write moments in plain coordinates."""
        saving.write({engines.number(engine, trainer): engine for engine in self.engines}, checkpoint)
        for engine in self.engines if checkpoint.get("optimizer_states") else ():
            self._warn_of_leaving(engine)

    def _warn_of_leaving(self, engine: Engine) -> None:
        """Say once what going on without us, or from a state that is not full, would change."""
        if self._told or (bump := saving.leaving(engine)) is None:
            return
        self._told = True
        rank_zero_only(print)(
            f"SecondOrder: a run that resumes from this checkpoint goes on {RESUMED[self.state]}. Without SecondOrder "
            f"it starts with an update at cosine {bump.cosine:.2f} to ours and {bump.length:.2f} of its length."
        )

    def on_load_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        """See whether the file is one of ours."""
        self._stamped = stamp.STAMP in checkpoint

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep it until training starts."""
        self._loaded = state["engines"] or None

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a running fit, so that the callback can be pickled and copied."""
        kept = ("method", "route", "min_coverage", "print_plan", "state", "checks", "reduction", "lag", "sharding")
        return {name: self.__dict__[name] for name in (*kept, "_loaded", "_stamped")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is not part of the fit."""
        self.__dict__.update(state)
        self._clear()

    # ---------------------------------------------------------------- inside

    def _before(self, optimizer: Any) -> Engine | None:
        """The engine before an optimizer."""
        base = strategies.client(optimizer)
        return next((engine for engine in self.engines if engine.optimizer is base), None)

    def _wrap(self, trainer: Any) -> None:
        """Undo a failed step at once, since nobody may see a hidden weight, and notice one that a scaler left out."""

        def step(original: Callable[..., Any]) -> Callable[..., Any]:
            def optimizer_step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
                for handles in self._around:
                    innermost(handles)
                engine = self._before(optimizer)
                tried = engine and engine.report.tried
                try:
                    found = original(optimizer, *args, **kwargs)
                finally:
                    for each in self.engines:
                        each.restore()
                if engine is not None and engine.report.tried == tried and strategies.left_out(trainer, engine):
                    engine.skip()
                return found

            return optimizer_step

        ours = [StandIn(trainer.strategy, "optimizer_step", step), ending(trainer.strategy, self._unhook)]
        ours += zero_step.wrap(trainer, self.engines)
        self._standing = [*ours, *saving.wrap(trainer.strategy, self.engines)]

    def _unhook(self) -> None:
        for engine in self.engines:
            engine.disarm()
        for handle in self._hooks:
            handle.remove()
        self._hooks, self._around = [], []
        for standing in self._standing:
            standing.release()
        self._standing = []
        if self._comm is not None:
            self._comm.close()
            self._comm = None
