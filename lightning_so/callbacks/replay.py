"""The loss of a training step again, as often as is wanted: nothing that the step has touched remembers it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn

from lightning_so.callbacks import strategies
from lightning_so.probe.parameters import ParameterVector
from lightning_so.probe.scalar import scalar
from lightning_so.probe.side_effects import set_random_state, undone


class Replay:
    """The loss of one training step at whatever the weights are: same batch, same random numbers.

    Gradients, buffers (BatchNorm's), metrics, attributes of modules, logged values and the generators are afterwards as
    they were before; see `probe.side_effects.undone`.

    Attributes:
        loss: This rank's loss where the last gradient was taken; None before.
    """

    def __init__(self, trainer: Any, module: nn.Module, vector: ParameterVector) -> None:
        """Remember where things are.

        Args:
            trainer: The Trainer.
            module: Its LightningModule.
            vector: The parameters.
        """
        self._trainer, self._module, self._vector = trainer, module, vector
        self.loss: Tensor | None = None

    @contextmanager
    def of(
        self, batch: Any, index: int, state: tuple[Any, ...], recorders: list[Any]
    ) -> Iterator[Callable[[], Tensor]]:
        """Make a function that gives the loss, with its graph.

        Args:
            batch: The batch.
            index: Its number.
            state: The generators' states at the step; see `probe.side_effects.random_state`.
            recorders: Of methods that observe layers, which are not to observe these passes.

        Yields:
            The function.
        """
        with ExitStack() as stack:
            stack.enter_context(silent(self._module))
            stack.enter_context(undone(self._module, self._vector.params))
            stack.enter_context(self._vector.forward.kept())
            for recorder in recorders:
                stack.enter_context(recorder.ignoring())
            yield lambda: self._loss(batch, index, state)

    def _loss(self, batch: Any, index: int, state: tuple[Any, ...]) -> Tensor:
        set_random_state(state)
        found = loss_of(strategies.training_step(self._trainer, *arguments(self._module, batch, index)))
        self.loss = found.detach()
        return found


def arguments(module: Any, batch: Any, index: int) -> tuple[Any, ...]:
    """What `training_step` takes: the batch, and its number where there is room for one."""
    params = signature(module.training_step).parameters.values()
    places = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    several = sum(p.kind in places for p in params) > 1 or any(p.kind is Parameter.VAR_POSITIONAL for p in params)
    return (batch, index) if several else (batch,)


def loss_of(output: Any) -> Tensor:
    """The loss in what `training_step` gave."""
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return scalar(loss, "training_step", "Return the loss, or a dict with it under 'loss'.")


@contextmanager
def silent(module: nn.Module) -> Iterator[None]:
    """Log nothing."""
    before = {name: module.__dict__[name] for name in ("log", "log_dict") if name in module.__dict__}
    module.__dict__.update(log=_nothing, log_dict=_nothing)
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            module.__dict__.pop(name)
        module.__dict__.update(before)


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""
