"""The callback: one line in a Trainer."""

from functools import partial
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so import methods as methods  # Rules call them by name.
from lightning_so.callbacks import around, engines, saving, strategies
from lightning_so.callbacks.first_steps import FirstSteps
from lightning_so.callbacks.following import Following, before, current, take_over
from lightning_so.callbacks.logged import log
from lightning_so.callbacks.one_step import tell_scale, unscale
from lightning_so.callbacks.record.recorder import Recorder, join
from lightning_so.callbacks.shadow.asked import Shadow
from lightning_so.callbacks.signals import inside_handler
from lightning_so.callbacks.standing import StandIn
from lightning_so.callbacks.switching import Switching
from lightning_so.comm import SHARDINGS, Local, ambient
from lightning_so.contract.memory import Memory
from lightning_so.contract.method import Method
from lightning_so.contract.ways import Ways
from lightning_so.core.checkpoint import checkpoint, stamp
from lightning_so.core.checkpoint.resting import rest
from lightning_so.core.engine import Engine
from lightning_so.core.host import Host
from lightning_so.core.options import Options, Overhead
from lightning_so.core.plan.mixture import Mixture
from lightning_so.core.stopwatch import Stopwatch
from lightning_so.core.telemetry import Telemetry, summary
from lightning_so.errors import check_choice


class SecondOrder(Switching):
    """Put a second-order method in front of the optimizers of `configure_optimizers`.

    Optimizer, learning rate, schedule, clipping, hooks, accumulation, precision and checkpoints keep working.

    Args:
        method: `SOAP()`, `KFAC()`, `Muon()`, ..., or a `Mixture` of rules. None takes what is recommended: `SOAP()`,
            and `KFAC()` before SGD.
        route: Overrides, role ("base", "hidden", "embedding", "head") -> globs on parameter names; and "split" -> globs
            and how many matrices a parameter is, as `{"split": {"*.qkv.weight": 3}}`.
        min_coverage: Smallest share of an optimizer's elements that must be covered.
        print_plan: Print where every parameter went when training starts, and what was done when it ends.
        state: What checkpoints carry: "full" (resuming is exact), "compact" (a sixth of its size; blocks go on
            rotating, not bit for bit) or "rebuild" (no curvature; blocks start cold).
        verify_every: Steps between two comparisons of one block's update with a float64 reference; 0 for never.
        compare_every: Steps between two comparisons of the ranks' weights; 0 for never.
        reduction: Whether the loss is a "mean" or a "sum" over samples, where its graph does not tell (K-FAC).
        lag: Steps between a solve and its use, 0 or 1: at 1 its exchange, on CUDA the solve too, is behind the passes.
        sharding: What a matrix is where ranks hold pieces: "exact", the whole, or "local", each rank's rows (FSDP2).
        max_overhead: What all of it may cost, as a share of the training's own step, which is measured; see `Overhead`.
        ways: How bases, polar factors and rotations are computed; what it leaves open is measured, but on a CPU.
        lengths: Of bent updates: "measured", longer while the loss falls straight along them, or as the "base"'s.
        memory: How curvature is to hold less: `Memory(half=True)`, or bytes a byte of the parameters, see `Memory`.
        balance: Whether units go to ranks by their measured speed, where ranks are not equally fast.
        recorder: Whether the training is recorded; or by which `Recorder`.
        shadow: Whether the method is only tried, on a copy beside the training; or `Shadow(promote_at=500)`.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> from lightning_so import SOAP, SecondOrder
        >>> SecondOrder(SOAP()).method.start
        50
    """

    def __init__(
        self,
        method: Method | Mixture | None = None,
        route: dict[str, list[str] | dict[str, int]] | None = None,
        min_coverage: float = 0.0,
        print_plan: bool = True,
        state: str = "full",
        verify_every: int = 0,
        compare_every: int = 0,
        reduction: str | None = None,
        lag: int = 0,
        sharding: str = "exact",
        max_overhead: float | Overhead | None = None,
        ways: Ways | None = None,
        lengths: str = "measured",
        memory: Memory | float | None = None,
        balance: bool = False,
        recorder: bool | Recorder = True,
        shadow: bool | Shadow = False,
    ) -> None:
        """Check the arguments; everything else happens when training starts."""
        check_choice("SecondOrder", "state", state, checkpoint.KINDS)
        check_choice("SecondOrder", "sharding", sharding, SHARDINGS)
        given = {"route": route, "reduction": reduction, "lag": lag, "lengths": lengths, "ways": ways, "memory": memory}
        given |= {"min_coverage": min_coverage, "verify_every": verify_every, "compare_every": compare_every}
        self.options = Options.asked("SecondOrder", method, **given, max_overhead=max_overhead, balance=balance)
        self.method, self.print_plan, self.state, self.sharding = method, print_plan, state, sharding
        self.recorder, self.shadow = recorder, Shadow.of(shadow)
        self._forget()
        self._clear()

    def _clear(self) -> None:
        """Everything that belongs to a running fit."""
        self.engines, self._telemetry = list[Engine](), list[Telemetry]()
        self._following: Following | None = None
        self._alive: FirstSteps | None = None
        self._standing = list[StandIn]()
        self._comm: Local | None = None
        self._told, self._race = False, None

    @property
    def state_key(self) -> str:
        """The key in checkpoints."""
        return "lightning_so.SecondOrder"

    # ---------------------------------------------------------------- start and end

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Refuse what cannot work before anything is set up."""
        strategies.refuse_several(trainer, SecondOrder)
        strategies.check(trainer)
        self._check(trainer, pl_module)
        strategies.warn_of_finders(trainer, stage)
        join(trainer, stage, self.recorder)
        if self._read:  # by a run that ended before it used it
            self._forget()

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Make one engine an optimizer, but where no method can work; print the plans, hook in."""
        self._unhook()
        optimizers = strategies.optimizers(trainer, "SecondOrder")
        sharded = [strategies.access(trainer, optimizer, self.sharding).sharded for optimizer in optimizers]
        self._comm, self._told = ambient(sharded=any(sharded)), False
        engine = partial(self._engine, trainer, pl_module)
        self.engines = engines.make(optimizers, engine, least=self.options.min_coverage, printed=self.print_plan)
        self._wrap(trainer)

    def _host(self, trainer: Any, pl_module: nn.Module, optimizer: Optimizer) -> Host:
        access = strategies.access(trainer, optimizer, self.sharding)
        return Host.of(pl_module, optimizer, access=access, world=self._comm)

    def _engine(self, trainer: Any, pl_module: nn.Module, optimizer: Optimizer) -> Engine:
        engine = Engine(self._host(trainer, pl_module, optimizer), self.options)
        if self.print_plan:
            engine.tell = rank_zero_only(print)
        return engine

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Load what the checkpoint held: here the optimizers have their state under every strategy."""
        for engine in self.engines:
            engine.follow()
        if self._loaded is None:
            for engine in self.engines:
                stamp.check_stamp(engine.optimizer, self._stamped)
        else:
            take_over(self.engines, self._loaded, cold=self.state == "rebuild")
        self._forget()
        # Not before: torch makes the state of FSDP2's optimizers by a step of zeros, into which it loads.
        host = partial(self._host, trainer, pl_module)
        self._following = Following(trainer, self.engines, host, partial(self._engine, trainer, pl_module))
        self._begin(trainer, pl_module)
        self._telemetry = [Telemetry(engine) for engine in self.engines]
        self._alive = FirstSteps(self.engines, trainer)
        engines.together(self.engines)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Say what was done; give every rank the factors, so that `curvature` works when the ranks have parted.

        The optimizers are left with plain moments: they can go on without us.
        """
        self._catch_up()
        self._drop(trainer)
        for engine in self.acting:
            engine.share_factors()
            engine.tell(summary(engine))
            rest(engine.parts)

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Leave no weight hidden; what callbacks after us need to save a checkpoint stays until `_wrap` undoes it."""
        for engine in self.engines:
            engine.restore()
            engine.disarm()

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Take the hooks back, and forget what another stage than fit has read."""
        if stage != "fit":
            self._forget()
        self._unhook()

    # ---------------------------------------------------------------- one step

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Optimizer) -> None:
        """Have gradients unscaled; what else is ours comes in the optimizer's own step, after all code of the user."""
        engine = before(self.engines, optimizer)
        if engine is not None:
            unscale(trainer, engine)
        self._note(optimizer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Tell taps by what the loss is multiplied and divided."""
        self._catch_up()
        tell_scale(trainer, pl_module, self.engines)

    def clocks(self) -> list[Stopwatch]:
        """Those of the engines."""
        return [engine.stopwatch for engine in self.engines]

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Show the loss to the engines that observe layers."""
        for engine in self.engines:
            engine.before_backward(loss)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the report."""
        if self._alive is not None and self._alive.check(trainer, batch):
            self._alive = None
        log(trainer, pl_module, self._telemetry)
        self._look(trainer, outputs, batch, batch_idx)

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """One state an optimizer; before training starts, what a checkpoint has brought."""
        if not self.engines and self._loaded is not None:
            return {"engines": self._loaded}
        self._catch_up()
        return {"engines": [saving.state(engine, self.state) for engine in self.engines]}

    def on_save_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Write moments in plain coordinates."""
        saving.write(self.engines, checkpoint, current(trainer))
        for engine in self.engines if checkpoint.get("optimizer_states") else ():
            self._told = self._told or saving.warn_of_leaving(engine, self.state)

    def on_load_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        """See whether the file is one of ours."""
        self._stamped, self._read = stamp.STAMP in checkpoint, True

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep it until training starts, or the next step: the optimizers load theirs later."""
        self._loaded = state["engines"] or None

    def _forget(self) -> None:
        self._loaded: list[dict[str, Any]] | None = None
        self._stamped = self._read = False

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a running fit, so that the callback can be pickled and copied."""
        kept = ("method", "options", "print_plan", "state", "sharding", "recorder", "shadow")
        kept += ("_loaded", "_stamped", "_read")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is not part of the fit."""
        vars(self).update(state)
        self._clear()

    # ---------------------------------------------------------------- inside

    def _catch_up(self, *, late: bool = False) -> None:
        """Between steps: go to optimizers that were put in the place of ours, and load what was read in mid-training.

        Not inside a signal's handler, where ranks are at different lines; `late`, after the pass, nothing is observed.
        """
        following = self._following
        if following is None or not (following.behind or self._loaded is not None) or inside_handler():
            return
        if following.behind:
            following.catch_up()
            self._telemetry = [Telemetry(engine) for engine in self.engines]
            engines.together(self.engines)
        if self._loaded is not None:
            take_over(self.engines, self._loaded, cold=self.state == "rebuild")
            self._forget()
        for engine in self.engines if not late else ():
            engine.arm()

    def _wrap(self, trainer: Any) -> None:
        """Stand around the strategy's own functions."""

        def prepare() -> None:
            self._catch_up(late=not trainer.lightning_module.automatic_optimization)
            if self._following is not None:
                self._following.close_in()

        self._standing = around.wrap(trainer, self.engines, prepare, self._catch_up, self._unhook)

    def _unhook(self) -> None:
        for engine in self.engines:
            engine.disarm()
        if self._following is not None:
            self._following.end()
            self._following = None
        for standing in self._standing:
            standing.release()
        self._standing = []
        if self._comm is not None:
            self._comm.close()
            self._comm = None
