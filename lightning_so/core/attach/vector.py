"""The engine of methods on the whole parameter vector for a plain torch loop, whose step is given a closure."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from lightning_so.comm import unsynced, unwrapped
from lightning_so.contract.vector_method import VectorMethod
from lightning_so.core.attach.replaced import ReplacedStep
from lightning_so.core.vector.engine import VectorEngine
from lightning_so.core.vector.rewound import Again
from lightning_so.errors import ConfigError
from lightning_so.linalg.plain import plain
from lightning_so.probe.parameters import ParameterVector
from lightning_so.probe.side_effects import random_state, set_random_state, undone


class AttachedVector(VectorEngine):
    """An engine that has taken the place of its optimizer's `step`; made by `attach`."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, method: VectorMethod, product: str) -> None:
        """See `VectorEngine`."""
        super().__init__(model, unwrapped(model).named_parameters(), optimizer, method, product=product)
        inner = getattr(optimizer, "_lightning_so", None)
        self.stand_behind([] if inner is None else [inner])
        self._step = ReplacedStep(optimizer, "_lightning_so_vector", self, partial(_step, self))

    def detach(self) -> None:
        """Leave: the optimizer's own step comes back. Its state was never touched."""
        self._step.take_back()
        self.vector.comm.close()

    @contextmanager
    def again(self, closure: Callable[[], Any], state: tuple[Any, ...]) -> Iterator[Again]:
        """The closure as often as is wanted, with the same random numbers; see `probe.side_effects.undone`."""
        with ExitStack() as stack:
            stack.enter_context(undone(self.model, self.vector.params))
            for recorder in self.recorders:
                stack.enter_context(recorder.ignoring())
            yield Called(closure, state, self.model, self.vector)


@dataclass(frozen=True)
class Called:
    """See `rewound.Again`."""

    closure: Callable[[], Any]
    state: tuple[Any, ...]
    model: nn.Module
    vector: ParameterVector

    def gradient(self, local: bool, /) -> Tensor:
        """See `Again.gradient`."""
        for param in self.vector.params:
            param.grad = None
        set_random_state(self.state)
        with unsynced(self.model) if local else nullcontext():
            self.closure()
        return self.vector.grads()

    def loss(self, local: bool, /) -> Tensor:
        """See `Again.loss`."""
        set_random_state(self.state)
        with unsynced(self.model) if local else nullcontext(), Withheld() as withheld:
            self.closure()
        if len(withheld.losses) != 1:
            raise ConfigError(
                f"the closure calls `backward()` {len(withheld.losses)} times, and there is to be one loss to take "
                f"apart: have it compute the loss of one batch, and call `loss.backward()` once."
            )
        return plain(withheld.losses[0])


class Withheld(TorchFunctionMode):
    """While it is entered, `loss.backward()` does nothing, and the loss keeps its graph.

    Attributes:
        losses: Those of which it was called.
    """

    def __init__(self) -> None:
        """None so far."""
        super().__init__()
        self.losses: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass every call of torch through, but for `backward()`, which is noted alone."""
        if func is Tensor.backward:
            self.losses.append(args[0])
            return None
        return func(*args, **(kwargs or {}))


def _step(engine: AttachedVector, original: Any) -> Any:
    """The optimizer's step with the method behind it."""

    def step(optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        if getattr(optimizer, "_lightning_so_vector", None) is not engine:
            return original(closure)
        if closure is None:
            raise ConfigError(
                f"{type(engine.method).__name__} evaluates the loss again: call `optimizer.step(closure)`, where the "
                f"closure zeroes the gradients, computes the loss, calls `backward()` and returns the loss."
            )
        engine.check_fits()
        state = random_state() if engine.probes() else None
        with torch.enable_grad():
            loss = closure()
        engine.saw()
        engine.admit()
        engine.begin()
        try:
            original()
        finally:
            engine.restore()
        engine.finish(lambda: engine.again(closure, state or random_state()), same=True, half=False)
        return loss

    return step
