"""The time of each stage of a step, off by default."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Seconds by stage.

    Attributes:
        clock: Process CPU time by default; on an accelerator one that synchronizes first.
        seconds: The sums so far.
    """

    clock: Callable[[], float] = time.process_time
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the body to `seconds[name]`."""
        begin = self.clock()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - begin


def stage(stopwatch: Stopwatch | None, name: str) -> AbstractContextManager[None]:
    """The stage's context: nothing without a stopwatch."""
    return nullcontext() if stopwatch is None else stopwatch.stage(name)
