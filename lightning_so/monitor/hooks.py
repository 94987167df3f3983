"""Hooks on a training's forward passes: for those that can be looked at, and for the module's own alone."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

#: Gets what a module was given and what it gave.
Heard = Callable[[Any, Any], None]


def hooked(module: nn.Module, heard: Heard) -> Any:
    """Hear the calls of a module.

    Args:
        module: The module.
        heard: Told of each call in training mode and with a graph.

    Returns:
        What to `remove()` for silence.
    """
    return module.register_forward_hook(_Hook(module, heard), with_kwargs=True)


def unheard(model: nn.Module) -> set[nn.Module]:
    """Modules whose hooks would not run, or not as they are written.

    Args:
        model: The model.

    Returns:
        Compiled modules with all in them, and what attention uses without calling it.
    """
    found = set[nn.Module]()
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None or type(module).__name__ == "OptimizedModule":
            found.update(module.modules())
        elif isinstance(module, nn.MultiheadAttention):
            found.add(module.out_proj)
    return found


def _outside() -> bool:
    """Whether a pass is none to look at: traced, transformed, or without a graph."""
    if torch.compiler.is_compiling():
        return True
    transforms: Any = torch._C
    return not torch.is_grad_enabled() or transforms._functorch.peek_interpreter_stack() is not None


class _Hook:
    """The hook of one module; in a copy of the module it does nothing, and holds nothing."""

    def __init__(self, module: nn.Module, heard: Heard) -> None:
        self._module, self._heard = module, heard

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if not _outside() and module.training and module is self._module:
            self._heard(args or tuple(kwargs.values()), output)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")
