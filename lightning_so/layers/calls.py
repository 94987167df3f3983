"""How the calls of a layer are heard: by its module's hook, or by a spy where its weight is used functionally.

A call is told as its input, its output, and a function that brings a gradient in that output beside the input's rows.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_so.linalg.plain import plain, plainly

#: Told of a call: input, samples first; output; gradient in it -> samples first, of all outputs of the weight.
Told = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], None]
#: What the spy hears: weight, input and output of a multiplication.
Heard = Callable[[Tensor, Tensor, Tensor], None]


class OwnHook:
    """A hook of one module, which acts for no other and leaves nothing where it is copied.

    What copies a module copies its hooks: a teacher, an average of weights, a file. A shallow copy, which has the same
    parameters, is the module itself to it. Deep copies and files hold, in its place, what does nothing and needs no
    import of ours.
    """

    def __init__(self, module: nn.Module, hook: Callable[..., None]) -> None:
        """Be the hook of a module.

        Args:
            module: The module.
            hook: What is done at its calls.
        """
        self._module, self._hook = module, hook

    @torch.compiler.disable
    def __call__(self, module: nn.Module, *arguments: Any) -> None:
        """Do it, if it is the module's call."""
        if module._parameters is self._module._parameters:
            self._hook(module, *arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied and written as a function that takes anything and gives None."""
        return getattr, (nullcontext(), "__exit__")


def of_module(module: nn.Module, told: Told) -> list[Any]:
    """Listen to the calls of a module in training mode.

    Args:
        module: The module.
        told: What is told of each.

    Returns:
        What to `remove()` for silence.
    """

    def forward(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        if module.training:
            with plainly():
                told(plain(args[0] if args else next(iter(kwargs.values()))), output, lambda g: g)

    hook: Any = OwnHook(module, forward)
    return [module.register_forward_hook(hook, with_kwargs=True)]


class Ear:
    """Hears every `torch.nn.functional.linear` while it is open.

    The first one that opens puts the spy there, the last one that closes puts the original back: ears may close in
    another order than they opened, as the hooks of one module do.
    """

    _open: ClassVar[dict["Ear", Heard]] = {}
    _original: ClassVar[Callable[..., Tensor]] = F.linear

    def open(self, heard: Heard) -> None:
        """Hear from now on.

        Args:
            heard: What hears.
        """
        if not Ear._open:
            Ear._original, F.linear = F.linear, _spy
        Ear._open[self] = heard

    def remove(self) -> None:
        """Hear no more."""
        if Ear._open.pop(self, None) is not None and not Ear._open:
            F.linear = Ear._original


@torch.compiler.disable
def _spy(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    output = Ear._original(input, weight, bias)
    with plainly():
        for heard in list(Ear._open.values()):
            heard(weight, plain(input), output)
    return output
