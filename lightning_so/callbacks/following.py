"""Engines in front of the optimizers that a Trainer has now: callbacks and users may replace them in mid-training."""

from collections.abc import Callable
from operator import is_
from typing import Any

from torch.optim import Optimizer

from lightning_so.callbacks import strategies
from lightning_so.core.attach.hooks import hooks, innermost
from lightning_so.core.attach.states import States
from lightning_so.core.checkpoint import checkpoint
from lightning_so.core.engine import Engine
from lightning_so.core.host import Host
from lightning_so.core.options import Part
from lightning_so.errors import ConfigError, StateError, TrustError


def current(trainer: Any) -> list[Optimizer]:
    """The optimizers that a Trainer has now, without wrappers."""
    return [strategies.client(optimizer) for optimizer in trainer.optimizers]


def before(engines: list[Engine], optimizer: Any) -> Engine | None:
    """The engine before an optimizer, if there is one."""
    base = strategies.client(optimizer)
    return next((engine for engine in engines if engine.optimizer is base), None)


def take_over(engines: list[Engine], states: list[dict[str, Any]], *, cold: bool) -> None:
    """Load what a checkpoint held, after the optimizers have loaded theirs; layers are to be hooked afterwards.

    Args:
        engines: The engines, one an optimizer.
        states: Theirs.
        cold: See `checkpoint.read`.

    Raises:
        StateError: If they are not of these engines.
    """
    if len(states) != len(engines):
        raise StateError(f"the checkpoint has {len(states)} optimizers, this run {len(engines)}.")
    for engine, state in zip(engines, states, strict=True):
        engine.follow(state=state)
        for recorder in engine.recorders:
            recorder.look_away()  # What was observed since the last step goes with what is loaded over.
        checkpoint.read(engine.parts, state, cold=cold)
        engine.part = Part(state.get("part", Part.ACTS))


class Following:
    """Engines that are hooked into the optimizers of a running fit, and follow where these are replaced."""

    def __init__(
        self,
        trainer: Any,
        engines: list[Engine],
        host: Callable[[Optimizer], Host],
        make: Callable[[Optimizer], Engine],
    ) -> None:
        """Hook in, but for the layers.

        Args:
            trainer: The Trainer.
            engines: Its engines; changed in place where optimizers are replaced.
            host: Gives the training of an optimizer.
            make: Gives a new engine of one.
        """
        self._trainer, self._engines, self._host, self._make = trainer, engines, host, make
        self._hooks, self._states = list[Any](), list[States]()
        self._around = list[list[Any]]()
        self._hook_in()

    def _hook_in(self) -> None:
        self._optimizers = current(self._trainer)
        for engine in self._engines:
            self._around.append(hooks(engine))
            self._states.append(States(engine))
        self._hooks += strategies.overlap(self._trainer, self._engines)

    def _release(self) -> None:
        for handle in (*self._hooks, *(handle for handles in self._around for handle in handles)):
            handle.remove()
        self._hooks, self._around = [], []

    def close_in(self) -> None:
        """Have our hooks of a step be the next to it; see `innermost`."""
        for handles in self._around:
            innermost(handles)

    def end(self) -> None:
        """Take the hooks back, and leave optimizers behind that go on alone."""
        self._release()
        for states in self._states:
            states.end()
        self._states = []

    @property
    def behind(self) -> bool:
        """Whether the Trainer has other optimizers than it had, or in another order."""
        optimizers = current(self._trainer)
        return len(optimizers) != len(self._optimizers) or not all(map(is_, optimizers, self._optimizers))

    def catch_up(self) -> None:
        """Go to the optimizers that the Trainer has now, between two steps: a collective.

        An engine whose optimizer is gone goes to the first one that has none, and counts on; the old optimizer is left
        with plain moments. Engines that are left over leave for good.

        Raises:
            ConfigError: If a method cannot work with a new optimizer.
            TrustError: If the strategy goes on stepping the old ones.
        """
        optimizers = current(self._trainer)
        if strategies.is_deepspeed(self._trainer.strategy):
            names = ", ".join(type(optimizer).__name__ for optimizer in optimizers) or "none"
            raise TrustError(
                f"the Trainer's optimizers were replaced in mid-training (now: {names}), and DeepSpeed goes on "
                f"stepping the one that it was given: change that one's param_groups, or start a new fit."
            )
        self._release()
        for states in self._states:
            states.remove()
        self._states = []
        known = {id(engine.optimizer): engine for engine in self._engines}
        alone = [optimizer for optimizer in self._optimizers if id(optimizer) not in known]
        free = [engine for engine in self._engines if not any(engine.optimizer is here for here in optimizers)]
        try:
            followed = [here for here in optimizers if not any(here is one for one in alone)]
            found = [known.get(id(optimizer)) or self._engine(optimizer, free) for optimizer in followed]
        except ConfigError as error:
            raise ConfigError(f"the Trainer's optimizers were replaced in mid-training: {error}") from error
        for engine in free:
            engine.disarm()
            engine.depart()
        self._engines[:] = found
        self._hook_in()

    def _engine(self, optimizer: Optimizer, free: list[Engine]) -> Engine:
        """One of those that have no optimizer any more, or a new one."""
        if not free:
            engine = self._make(optimizer)
            engine.tell(engine.plan)
            return engine
        host, engine = self._host(optimizer), free.pop(0)
        engine.restore()
        engine.follow(host)
        return engine
