"""Lightning's DDP strategy, which tells when gradients leave, so that statistics travel beside them."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_so.comm.buckets import tell
from lightning_so.strategies.names import twins

__all__ = ["CLASSES", "SecondOrderDDPStrategy"]


class _Telling(DDPStrategy if TYPE_CHECKING else object):
    """What tells of gradients, to stand before the DDPStrategy of either import name of Lightning."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        super().__init__(*args, **kwargs)
        self._listeners: dict[int, Callable[[list[Tensor]], None]] = OrderedDict()

    def listen(self, listener: Callable[[list[Tensor]], None]) -> RemovableHandle:
        """Hear of parameters whose gradients are complete on this rank, and leave to be reduced.

        Args:
            listener: Called with them in every backward pass that reduces; in the same order on every rank.

        Returns:
            The handle that ends it.
        """
        handle = RemovableHandle(self._listeners)
        self._listeners[handle.id] = listener
        return handle

    def _register_ddp_hooks(self) -> None:
        hook: Any = None
        if self._ddp_comm_hook is not None and self.root_device.type == "cuda":  # as Lightning has it
            hook = self._ddp_comm_wrapper(self._ddp_comm_hook) if self._ddp_comm_wrapper else self._ddp_comm_hook
            hook = partial(hook, self._ddp_comm_state)
        model: Any = self.model
        tell(model, lambda: list(self._listeners.values()), hook)


class SecondOrderDDPStrategy(_Telling, DDPStrategy):
    """Distributed data parallel that sends the statistics of K-FAC and EKFAC during the backward pass.

    Under Lightning's own `ddp` they are summed over ranks before the step, while nothing else happens. The weights are
    the same. `Trainer(strategy="ddp_so")` makes it after `import lightning_so`. In a Trainer of `lightning.pytorch` the
    name does too; with arguments, its class is `CLASSES["lightning.pytorch"]`.

    Args:
        args: As for Lightning's `DDPStrategy`.
        kwargs: As for Lightning's `DDPStrategy`: `find_unused_parameters`, `ddp_comm_hook` (on GPUs), ...

    Example:
        >>> SecondOrderDDPStrategy(find_unused_parameters=True).listen(print).id >= 0
        True
    """


#: The strategy for each import name of Lightning that is installed.
CLASSES = twins(SecondOrderDDPStrategy)
# By its own name, too: a class that a module does not hold cannot be pickled.
LightningSecondOrderDDPStrategy = CLASSES.get("lightning.pytorch")
