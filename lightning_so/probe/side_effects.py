"""What a forward and backward pass leaves behind, taken back: gradients, buffers, attributes, metrics, generators."""

import copy
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: What a metric of torchmetrics keeps besides its states.
KEPT = ("_update_count", "_computed", "_forward_cache", "_cache", "_is_synced", "_to_sync", "_should_unsync")
#: What every module has, and where others keep what a pass needs: these attributes are left alone.
OWN, WRAPPERS = frozenset(nn.Module().__dict__), ("torch", "deepspeed")


def random_state() -> tuple[Any, ...]:
    """The states of all generators that a training step may ask."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    # What was never imported was never asked.
    numpy: Any = sys.modules.get("numpy")
    return random.getstate(), torch.get_rng_state(), cuda, numpy and numpy.random.get_state()


def set_random_state(state: tuple[Any, ...]) -> None:
    """Go back to what `random_state` gave."""
    python, cpu, cuda, of_numpy = state
    random.setstate(python)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
    if of_numpy is not None:
        sys.modules["numpy"].random.set_state(of_numpy)


@contextmanager
def undone(module: nn.Module, params: Sequence[Tensor]) -> Iterator[None]:
    """Have everything afterwards as it was before.

    Of a module's attributes what they are bound to comes back, and what is in lists, dicts, sets and deques; of metrics
    the numbers too, with the graph that they are of. A tensor that is no buffer and is written in place is not.

    Args:
        module: The module, whose buffers, attributes and metrics it is about.
        params: The parameters whose gradients.
    """
    state = random_state()
    with ExitStack() as stack:
        stack.callback(set_random_state, state)
        stack.enter_context(_gradients(params))
        stack.enter_context(_buffers(module))
        stack.enter_context(_metrics(module))
        stack.enter_context(_attributes(module))
        yield


@contextmanager
def _gradients(params: Sequence[Tensor]) -> Iterator[None]:
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
def _attributes(module: nn.Module) -> Iterator[None]:
    """Bind attributes to what they were bound to, and fill containers with what was in them."""
    parts = [part for part in module.modules() if type(part).__module__.partition(".")[0] not in WRAPPERS]
    kept = [(part, _plain(part)) for part in parts]
    contents = [
        (value, copy.copy(value))
        for _, values in kept
        for value in values.values()
        if isinstance(value, list | dict | set | deque)
    ]
    try:
        yield
    finally:
        for part, values in kept:
            for name in _plain(part).keys() - values.keys():
                del part.__dict__[name]
            part.__dict__.update(values)
        for container, content in contents:
            container.clear()
            container.extend(content) if isinstance(container, list | deque) else container.update(content)


def _plain(part: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are its class's own."""
    return {name: value for name, value in part.__dict__.items() if name not in OWN}


@contextmanager
def _metrics(module: nn.Module) -> Iterator[None]:
    """Put the states of torchmetrics' metrics back."""
    metrics: list[Any] = [part for part in module.modules() if hasattr(part, "_defaults") and hasattr(part, "update")]
    kept = [
        {name: _remembered(value) for name, value in metric.__dict__.items() if name in (*metric._defaults, *KEPT)}
        for metric in metrics
    ]
    try:
        yield
    finally:
        for metric, values in zip(metrics, kept, strict=True):
            metric.__dict__.update({name: again() for name, again in values.items()})


def _remembered(value: Any) -> Callable[[], Any]:
    """Gives a value again as it is now: the same tensor where it was not written, else a copy in the same graph."""
    if isinstance(value, Tensor):
        with torch.enable_grad():  # Of a metric that is a loss, the state is in a graph.
            clone = value.clone()
        version = None if value.is_inference() else value._version
        return lambda: value if version is not None and value._version == version else clone
    if isinstance(value, dict):
        found = {name: _remembered(part) for name, part in value.items()}
        return lambda: {name: again() for name, again in found.items()}
    if type(value) in (list, tuple):
        parts = [_remembered(part) for part in value]
        return lambda: type(value)(again() for again in parts)
    return lambda: value
