"""Where solves run: in line with the training, or on a CUDA stream of their own, behind its next passes."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

T = TypeVar("T")


class InLine:
    """In line: whatever is started is done.

    Attributes:
        told: What the plan says of it, after what it says of the lag.
    """

    told = ""

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """Start work on what is there now.

        Args:
            work: Reads tensors that nobody changes before what is returned was called.

        Returns:
            Gives what came of it; called again, the same.
        """
        found = work()
        return lambda: found


class SideStream(InLine):
    """On a stream of its own: the device works on it beside the training, and the host waits for neither.

    Where a library makes the host wait, in an eigendecomposition, it waits for this stream alone.
    """

    told = ", and made on a stream of their own"

    def __init__(self, device: torch.device) -> None:
        """Make the stream.

        Args:
            device: Of CUDA.
        """
        self._device, self._stream = device, torch.cuda.Stream(device)

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """See `InLine.start`: it begins once what is queued now is done, and whoever calls has its stream wait."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            found = work()
            done = self._stream.record_event()

        # The memory of what is found belongs to the side stream. It is taken for other things by the next start alone,
        # which waits for all that reads it now: so it need not be recorded as used by others.
        def waited() -> T:
            torch.cuda.current_stream(self._device).wait_event(done)
            return found

        return waited


def line_of(devices: Iterable[torch.device], lag: int) -> InLine:
    """Where the solves of a training run.

    Args:
        devices: Where its factors are.
        lag: Steps between a solve and its use; without one there is nothing to run behind.

    Returns:
        A side stream where there is a lag and all is on one CUDA device, else in line.
    """
    places = {*devices}
    device = places.pop() if len(places) == 1 else None
    return SideStream(device) if lag and device is not None and device.type == "cuda" else InLine()
