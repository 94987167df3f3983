"""What DDP has around a model: passes that are of this rank alone, and the model itself."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def unsynced(model: nn.Module) -> Iterator[None]:
    """Have DDP expect no gradients of the forward passes meanwhile; what is expected afterwards stays as it was.

    Args:
        model: The model as it is wrapped; without DDP nothing happens.
    """
    wrapped = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    # A pass without an exchange of gradients has the next one leave out that of the buffers.
    buffers = [module.require_forward_param_sync for module in wrapped]
    try:
        with ExitStack() as stack:
            for module in wrapped:
                stack.enter_context(module.no_sync())
            yield
    finally:
        for module, before in zip(wrapped, buffers, strict=True):
            module.require_forward_param_sync = before


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP, whose parameters have the names that they have in one process; else the model."""
    return model.module if isinstance(model, DistributedDataParallel) else model


#: What wrappers put into names; stripped so that keys do not depend on how the model was wrapped.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.", "_checkpoint_wrapped_module.")


def clean(name: str) -> str:
    """A parameter's name without what wrappers put into it."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
