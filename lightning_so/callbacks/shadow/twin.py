"""A copy of a training: its module and its optimizer, that a method is attached to and that takes steps of its own."""

import copy
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.callbacks import strategies
from lightning_so.callbacks.replay import arguments, loss_of, silent
from lightning_so.comm import ambient
from lightning_so.core.attach.attach import Attached
from lightning_so.core.host import Host
from lightning_so.core.options import Options
from lightning_so.core.trust.memory import state_bytes
from lightning_so.errors import ConfigError
from lightning_so.probe.side_effects import random_state, set_random_state

#: Hyper-parameters of each param group.
Rates = list[dict[str, Any]]


def rates(optimizer: Optimizer) -> Rates:
    """The hyper-parameters that an optimizer's groups have now."""
    return [{name: _kept(value) for name, value in g.items() if name != "params"} for g in optimizer.param_groups]


def _kept(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class Twin:
    """A copy of a training, with a method in front of its optimizer.

    It has module, buffers, metrics and optimizer of its own; generators are put back after each pass of it. Under DDP
    each rank has one, and their gradients are averaged as the training's are.

    Attributes:
        engine: The method's engine.
    """

    def __init__(self, trainer: Any, module: nn.Module, optimizer: Optimizer, options: Options) -> None:
        """Copy a training where it is: a collective.

        Args:
            trainer: The Trainer, whose precision and clipping it has.
            module: The LightningModule.
            optimizer: Its optimizer.
            options: How the method works.

        Raises:
            ConfigError: If the module cannot be copied, or the method does not fit.
        """
        known: dict[int, Any] = {}
        try:
            self._module: Any = copy.deepcopy(module, known)
            self._optimizer = copy.deepcopy(optimizer, known)
        except Exception as error:
            raise ConfigError(
                f"SecondOrder(shadow=True) trains a copy of {type(module).__name__}, which copy.deepcopy refuses: "
                f"{error}. Keep out of the module what cannot be copied, or leave shadow out."
            ) from error
        self._module.trainer = self._trainer = trainer
        self._accumulate = trainer.accumulate_grad_batches
        self._averaged = strategies.averaged(trainer, self._module)
        self.engine = Attached(Host.of(self._module, self._optimizer, world=ambient(sharded=False)), options)

    def gradient(self, batch: Any, index: int, *, last: bool) -> Tensor:
        """Add the gradient of a micro-batch.

        Args:
            batch: The batch.
            index: Its number.
            last: Whether it is the last of a step, with which ranks average their gradients.

        Returns:
            Its loss over the number of micro-batches of a step, detached.
        """
        state, given = random_state(), arguments(self._module, batch, index)
        with ExitStack() as stack:
            stack.callback(set_random_state, state)
            if self._averaged is not None and not last:
                stack.enter_context(self._averaged.no_sync())
            with silent(self._module), self._trainer.precision_plugin.train_step_context():
                output = strategies.passed(self._trainer, self._averaged, self._module, given)
            loss = loss_of(output) / self._accumulate
            self.engine.before_backward(loss)
            loss.backward()
        return loss.detach()

    def step(self, hyper: Rates) -> None:
        """Take a step with some hyper-parameters, and forget the gradients.

        Args:
            hyper: Of each param group.
        """
        for group, values in zip(self._optimizer.param_groups, hyper, strict=True):
            group.update(values)
        clip = self._trainer.gradient_clip_val, self._trainer.gradient_clip_algorithm
        self._module.configure_gradient_clipping(self._optimizer, *clip)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def bytes(self) -> int:
        """Bytes of all that it keeps: weights, moments and curvature."""
        moments = [v for state in self._optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        kept = (*self._module.parameters(), *self._module.buffers(), *moments)
        parts = self.engine.parts
        return sum(tensor.numel() * tensor.element_size() for tensor in kept) + state_bytes(parts.units, parts.matrices)

    def end(self) -> None:
        """Take the hooks back."""
        self.engine.detach()
