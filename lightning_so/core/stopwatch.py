"""Host time of each stage of a step."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Seconds by stage.

    On an accelerator these are the host's: what waits on the device is not in them, unless `clock` synchronizes first.

    Attributes:
        clock: Seconds since some fixed moment.
        seconds: The sums so far.
    """

    clock: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the body to `seconds[name]`."""
        begin = self.clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - begin
