"""The clock of a device: moments that are noted without waiting, and the seconds between two of them, once known."""

import platform
import time
from typing import Any

import torch

from lightning_so.core.measure import name_of


class Clock:
    """Process time of the CPU: what other programs take of the machine is not in it.

    Attributes:
        device: What is timed; timings of one device say nothing of another.
    """

    def __init__(self) -> None:
        """Name the processor and the threads that share its work."""
        self.device = f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"

    def moment(self) -> Any:
        """Note the moment."""
        return time.process_time()

    def seconds(self, begin: Any, end: Any) -> float | None:
        """Seconds between two moments; None while they are not known."""
        return end - begin


class WallClock(Clock):
    """Time that passes, in which a processor may be throttled or do other work."""

    def moment(self) -> Any:
        """See `Clock.moment`."""
        return time.perf_counter()


class CudaClock(Clock):
    """Events on the current stream: the host never waits for one."""

    def __init__(self, device: torch.device) -> None:
        """Name the device.

        Args:
            device: The accelerator.
        """
        self.device = name_of(device)

    def moment(self) -> Any:
        """See `Clock.moment`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float | None:
        """See `Clock.seconds`: events are of one stream, so that the later one tells for both."""
        return begin.elapsed_time(end) / 1e3 if end.query() else None


def clock_of(device: torch.device) -> Clock:
    """The clock of a device.

    Args:
        device: Where the parameters are.

    Returns:
        One of events on CUDA, of process time elsewhere.
    """
    return CudaClock(device) if device.type == "cuda" else Clock()


def wall_of(device: torch.device) -> Clock:
    """The clock of a device by which one that is throttled is slower.

    Args:
        device: Where the parameters are.

    Returns:
        One of events on CUDA, of time that passes elsewhere.
    """
    return CudaClock(device) if device.type == "cuda" else WallClock()
