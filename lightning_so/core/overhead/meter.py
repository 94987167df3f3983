"""The meter: seconds of every step of the training, its own and those of each stage and each kind of solve."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from lightning_so.core.host import Host
from lightning_so.core.overhead.clock import Clock, clock_of
from lightning_so.core.stopwatch import Stopwatch

#: Stages that come at every step and cost the same at each.
STEADY = ("guard", "observe", "act", "finish")
#: Laps that may wait for a device; older ones are let go.
WAITING = 64


@dataclass(frozen=True)
class Lap:
    """One step of the training, from where its gradients were ready to where the next ones were.

    Attributes:
        own: Seconds of the training itself.
        steady: Of stages that come at every step.
        hooks: In hooks on layers, which take rows in.
        folding: In what else is done for rows.
        solving: In the whole stage of solves.
        kinds: By kind of unit, in the call that solves it: how many, and seconds.
        watched: Share of the blocks with rows that were watched.
    """

    own: float
    steady: float
    hooks: float
    folding: float
    solving: float
    kinds: dict[int, tuple[int, float]]
    watched: float

    @property
    def ours(self) -> float:
        """Seconds of all that is ours."""
        return self.steady + self.hooks + self.folding + self.solving


@dataclass
class _Open:
    """A lap that is being noted: moments, of which seconds are known later."""

    begin: Any
    spans: list[tuple[str, Any, Any]] = field(default_factory=list)
    kinds: list[tuple[int, int, Any, Any]] = field(default_factory=list)
    watched: float = 0.0
    void: bool = False


class Meter(Stopwatch):
    """A stopwatch that also notes moments of the device's clock, step by step.

    Attributes:
        timer: The device's clock.
        peers: The meters of all engines of the training, this one too: what is theirs is not the training's own.
        laps: Steps whose seconds are known, oldest first; whoever uses them takes them out.
    """

    def __init__(self, timer: Clock) -> None:
        """Nothing is noted before the first step.

        Args:
            timer: The device's clock.
        """
        super().__init__()
        self.timer, self.peers, self.laps = timer, [self], deque[Lap](maxlen=WAITING)
        self._open: _Open | None = None
        self._closed, self._left = deque[tuple[_Open, Any]](maxlen=WAITING), None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See `Stopwatch.stage`."""
        with super().stage(name), self.span(name):
            yield

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Note the body as ours, without the stopwatch's own seconds: hooks are inside the training's backward pass."""
        begin = self.timer.moment()
        try:
            yield
        finally:
            self._note(name, begin)

    def hooks(self) -> AbstractContextManager[None]:
        """See `Stopwatch.hooks`."""
        return self.span("hooks")

    def around(self, solve: Callable[..., Any], kinds: list[int]) -> Callable[..., Any]:
        """See `Stopwatch.around`."""

        def timed(units: Any, numbers: list[int], rung: Any) -> Any:
            begin = self.timer.moment()
            found = solve(units, numbers, rung)
            if self._open is not None:
                self._open.kinds.append((kinds[numbers[0]], len(numbers), begin, self.timer.moment()))
            return found

        return timed

    def lap(self) -> None:
        """See `Stopwatch.lap`."""
        now = self.timer.moment()
        if self._open is not None and not self._open.void:
            self._closed.append((self._open, now))
        self._open = _Open(now)
        while self._closed and (lap := self._known(*self._closed[0])) is not None:
            self._closed.popleft()
            self.laps.append(lap)

    def watched(self, share: float) -> None:
        """Note which share of the blocks with rows this step has watched."""
        if self._open is not None:
            self._open.watched = share

    def void(self) -> None:
        """See `Stopwatch.void`."""
        if self._open is not None:
            self._open.void = True

    def leave(self) -> None:
        """See `Stopwatch.leave`."""
        self._left = self.timer.moment()

    def come_back(self) -> None:
        """See `Stopwatch.come_back`."""
        if self._left is not None and self._open is not None:
            self._open.spans.append(("aside", self._left, self.timer.moment()))
        self._left = None

    def _note(self, name: str, begin: Any) -> None:
        end = self.timer.moment()
        for meter in self.peers:
            if meter._open is not None:
                meter._open.spans.append((name if meter is self else "peer", begin, end))

    def _known(self, lap: _Open, end: Any) -> Lap | None:
        """The seconds of a lap; None while the device has not told all of them."""
        whole = self.timer.seconds(lap.begin, end)
        if whole is None:
            return None
        found: dict[str, float] = {}
        for name, begin, until in lap.spans:
            found[name] = found.get(name, 0.0) + (self.timer.seconds(begin, until) or 0.0)
        kinds: dict[int, tuple[int, float]] = {}
        for kind, count, begin, until in lap.kinds:
            before, seconds = kinds.get(kind, (0, 0.0))
            kinds[kind] = before + count, seconds + (self.timer.seconds(begin, until) or 0.0)
        steady = sum(found.get(name, 0.0) for name in STEADY)
        rows = found.get("hooks", 0.0), found.get("watch", 0.0)
        return Lap(whole - sum(found.values()), steady, *rows, found.get("solve", 0.0), kinds, lap.watched)


def stopwatch_of(host: Host, *, metered: bool) -> Stopwatch:
    """What notes the times of an engine's steps.

    Args:
        host: The training.
        metered: Whether a share of time is asked for, which must be measured.

    Returns:
        A meter, or a plain stopwatch.
    """
    return Meter(clock_of(host.params[0].device)) if metered else Stopwatch()
