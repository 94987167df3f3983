"""Numbers of a device on their way to the host: nobody waits for them."""

import torch
from torch import Tensor


class Reading:
    """A copy of a tensor on the host, there once it is asked for some steps later."""

    def __init__(self, numbers: Tensor) -> None:
        """Send it off.

        Args:
            numbers: Single precision.
        """
        self._event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._here = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._here.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._here = numbers

    @property
    def numbers(self) -> Tensor:
        """The copy."""
        if self._event is not None:
            self._event.synchronize()
        return self._here
