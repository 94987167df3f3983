"""Time of each stage of a step."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stopwatch:
    """Seconds by stage.

    On an accelerator these are the host's: what waits on the device is not in them, unless `clock` synchronizes first.
    What else can be noted of a step is left to who needs it: see `overhead.meter`.

    Attributes:
        clock: Seconds since some fixed moment.
        seconds: The sums so far.
        spans: Stage, begin and end of each, where someone takes them out; None else.
    """

    clock: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)
    spans: list[tuple[str, float, float]] | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the body to `seconds[name]`."""
        begin = self.clock()
        try:
            yield
        finally:
            end = self.clock()
            self.seconds[name] = self.seconds.get(name, 0.0) + end - begin
            if self.spans is not None:
                self.spans.append((name, begin, end))

    def hooks(self) -> AbstractContextManager[None]:
        """A context around what hooks on layers do in the training's own passes."""
        return nullcontext()

    def around(self, solve: Callable[..., Any], kinds: list[int]) -> Callable[..., Any]:
        """The same function, noted by kind of unit.

        Args:
            solve: Solves units of one kind.
            kinds: The kind of each unit.

        Returns:
            The function.
        """
        return solve

    def lap(self) -> None:
        """The gradients of a step are ready."""

    def void(self) -> None:
        """What comes since the last lap is no usual step."""

    def leave(self) -> None:
        """What comes now is no part of a step, as validation."""

    def come_back(self) -> None:
        """The step goes on."""
