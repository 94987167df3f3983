"""The gradient of a training step again, as often as is wanted: nothing that the step has touched remembers it."""

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from lightning_so.comm import Access
from lightning_so.core.errors import ConfigError
from lightning_so.linalg.vectors import Space

#: What a metric of torchmetrics keeps besides its states.
KEPT = ("_update_count", "_computed", "_forward_cache", "_cache", "_is_synced", "_to_sync", "_should_unsync")


def random_state() -> tuple[Any, ...]:
    """The states of all generators that a training step may ask."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return random.getstate(), torch.get_rng_state(), cuda, _numpy().get_state()


def set_random_state(state: tuple[Any, ...]) -> None:
    """Go back to what `random_state` gave."""
    python, cpu, cuda, numpy = state
    random.setstate(python)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
    _numpy().set_state(numpy)


def _numpy() -> Any:
    import numpy

    return numpy.random


class Replay:
    """Gradients of one training step at whatever the weights are: same batch, same random numbers.

    Gradients, buffers (BatchNorm's), metrics, logged values and the generators are afterwards as they were before; what
    a training step itself writes into attributes of the module is not.

    Attributes:
        calls: Gradients that were computed.
    """

    def __init__(self, trainer: Any, module: nn.Module, params: list[Tensor], access: Access, space: Space) -> None:
        """Remember where things are.

        Args:
            trainer: The Trainer.
            module: Its LightningModule.
            params: The parameters, in the order of the space.
            access: Where their numbers are.
            space: What the gradient is a vector of.
        """
        self._trainer, self._module, self._params, self._access, self._space = trainer, module, params, access, space
        self.calls = 0

    @contextmanager
    def of(self, batch: Any, index: int, state: tuple[Any, ...], recorders: list[Any]) -> Iterator[Any]:
        """Make a function that gives the gradient.

        Args:
            batch: The batch.
            index: Its number.
            state: The generators' states at the step; see `random_state`.
            recorders: Of methods that observe layers, which are not to observe these passes.

        Yields:
            The function: no arguments, a vector of the space.
        """
        before = random_state()
        with ExitStack() as stack:
            stack.enter_context(_silent(self._module))
            stack.enter_context(_gradients(self._params))
            stack.enter_context(_buffers(self._module))
            stack.enter_context(_metrics(self._module))
            for recorder in recorders:
                stack.enter_context(recorder.ignoring())
            stack.callback(set_random_state, before)
            yield lambda: self._gradient(batch, index, state)

    def _gradient(self, batch: Any, index: int, state: tuple[Any, ...]) -> Tensor:
        self.calls += 1
        set_random_state(state)
        for param in self._params:
            param.grad = None
        _loss(self._trainer.strategy.training_step(*_arguments(self._module, batch, index))).backward()
        found = [torch.empty(0, dtype=self._space.dtype, device=self._space.device)]
        for param, piece in zip(self._params, self._space.pieces, strict=True):
            grad = self._access.grad(param)
            found.append(found[0].new_zeros(piece.count) if grad is None else grad.reshape(-1).to(found[0]))
        return torch.cat(found)


def _arguments(module: Any, batch: Any, index: int) -> tuple[Any, ...]:
    """What `training_step` takes: the batch, and its number where there is room for one."""
    params = signature(module.training_step).parameters.values()
    places = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    several = sum(p.kind in places for p in params) > 1 or any(p.kind is Parameter.VAR_POSITIONAL for p in params)
    return (batch, index) if several else (batch,)


def _loss(output: Any) -> Tensor:
    """The loss in what `training_step` gave."""
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ConfigError(
            f"training_step gave {what} for the loss: curvature is that of a scalar that the weights have made. Return "
            f"the loss, or a dict with it under 'loss'."
        )
    return loss


@contextmanager
def _silent(module: nn.Module) -> Iterator[None]:
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


@contextmanager
def _gradients(params: list[Tensor]) -> Iterator[None]:
    """Put the gradients back: the same tensors, with the same numbers (those of DDP are views of its buckets)."""
    kept = [(param, param.grad, None if param.grad is None else param.grad.clone()) for param in params]
    try:
        yield
    finally:
        with torch.no_grad():
            for param, grad, numbers in kept:
                param.grad = grad
                if grad is not None and numbers is not None:
                    grad.copy_(numbers)


@contextmanager
def _buffers(module: nn.Module) -> Iterator[None]:
    """Put the buffers back."""
    kept = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, numbers in kept:
                buffer.copy_(numbers)
                owner._buffers[name] = buffer


@contextmanager
def _metrics(module: nn.Module) -> Iterator[None]:
    """Put the states of torchmetrics' metrics back."""
    metrics: list[Any] = [part for part in module.modules() if hasattr(part, "_defaults") and hasattr(part, "update")]
    kept = [
        {name: copy.deepcopy(value) for name, value in metric.__dict__.items() if name in (*metric._defaults, *KEPT)}
        for metric in metrics
    ]
    try:
        yield
    finally:
        for metric, values in zip(metrics, kept, strict=True):
            metric.__dict__.update(values)
