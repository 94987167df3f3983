"""What is kept of a training on one rank: the last steps whole, the whole run thinned; its size has a bound.

The file's format is told in docs/reference/recorder.md.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_so.recording.file import FORMAT, VERSION
from lightning_so.recording.thinned import Ends, Thinned

#: A number, or None where it is not known.
Number = float | None
#: Steps of the whole run that are kept, at most; looks at layers and at the spectrum; spans, solves; events at an end.
WHOLE, LOOKS, SPANS, SOLVES, EVENTS = 1000, 200, 4000, 1000, 250
#: Of one layer at one look, in this order: squared norms of weight, of its change by a step, of the gradient, and the
#: inner product of the last two.
OF_LAYER = ("weight", "update", "gradient", "dot")
#: Of the outputs of one layer at one look; see `monitor.health`.
OF_UNITS = ("dead", "saturated", "rank", "largest")


@dataclass(frozen=True)
class Event:
    """Something that happened at a step.

    Attributes:
        step: When.
        kind: "nan", "spike", "skipped", "fallback", "failure", "cooled", "entered", "exception", ...
        name: The layer or block; empty for none.
        text: What happened, for people.
    """

    step: int
    kind: str
    name: str
    text: str


@dataclass
class Looks:
    """Looks at many layers: of each look, numbers by quantity and layer.

    Attributes:
        names: The layers.
        quantities: What is told of each.
        more: Other facts of the layers, by name.
        kept: Step, and numbers of shape (quantities, layers), of each look.
    """

    names: Sequence[str]
    quantities: Sequence[str]
    more: Mapping[str, Any] = field(default_factory=dict)
    kept: Thinned[tuple[int, list[list[Number]]]] = field(default_factory=lambda: Thinned(LOOKS))

    def columns(self) -> dict[str, Any]:
        """For files."""
        numbers = {name: [look[row] for _, look in self.kept.kept] for row, name in enumerate(self.quantities)}
        return {"names": list(self.names), **self.more, "step": [step for step, _ in self.kept.kept], **numbers}


class Recording:
    """One rank's.

    Attributes:
        run: The same on all ranks.
        rank: This one.
        ranks: How many there are.
        facts: What does not change: optimizer, method, plan, settings, versions.
        began: Unix time and step of the start.
        layers: Looks at weights; None where there are none.
        units: Looks at outputs of layers.
        spans: Stage, step, begin, seconds and blocks of what took time.
        solved: Step, owner, seconds and blocks of solves.
        events: What happened.
        spectra: Looks at the spectrum, as `monitor.over_time` keeps them.
        memory: Bytes by part.
        shadow: What another method would have done.
    """

    def __init__(self, run: str, rank: int, ranks: int, step: int, facts: dict[str, Any], last: int) -> None:
        """Nothing is kept.

        Args:
            run: Tells the run from all others.
            rank: This rank.
            ranks: How many there are.
            step: Steps that were made before.
            facts: See above.
            last: How many of the last steps are kept whole.
        """
        self.run, self.rank, self.ranks, self.facts, self.began = run, rank, ranks, facts, (time.time(), step)
        self.layers: Looks | None = None
        self.units: Looks | None = None
        self.spans, self.solved = deque[tuple[Any, ...]](maxlen=SPANS), deque[tuple[Any, ...]](maxlen=SOLVES)
        self.events, self.spectra = Ends[Event](EVENTS), list[dict[str, Any]]()
        self.memory = dict[str, int]()
        self.shadow: dict[str, Any] | None = None
        self._last, self._whole = deque[dict[str, Number]](maxlen=last), Thinned[dict[str, Number]](WHOLE)

    def add(self, row: dict[str, Number]) -> None:
        """Keep what is known of a step, by column; "step" is one of them."""
        self._last.append(row)
        self._whole.add(row)

    def last(self, column: str) -> list[Number]:
        """A column of the last steps, oldest first."""
        return [row.get(column) for row in self._last]

    def file(self, why: str, step: int, message: str = "") -> dict[str, Any]:
        """All of it, for a file.

        Args:
            why: It is written.
            step: When.
            message: What else is to be said.

        Returns:
            Numbers, strings, lists and dicts of them.
        """
        time_of_start, first = self.began
        return {
            "format": FORMAT,
            "version": VERSION,
            "run": self.run,
            "rank": self.rank,
            "ranks": self.ranks,
            "written": {"why": why, "step": step, "time": time.time(), "message": message},
            "begun": {"time": time_of_start, "step": first},
            "facts": self.facts,
            "last": _columns(self._last),
            "whole": _columns(self._whole.kept),
            "layers": None if self.layers is None else self.layers.columns(),
            "units": None if self.units is None else self.units.columns(),
            "spans": [list(span) for span in self.spans],
            "solved": [list(solve) for solve in self.solved],
            "events": [asdict(event) for event in self.events],
            "events_lost": self.events.lost,
            "spectra": self.spectra,
            "memory": self.memory,
            "shadow": self.shadow,
        }


def _columns(rows: Iterable[Mapping[str, Number]]) -> dict[str, list[Number]]:
    """Rows as columns; what a row lacks is None."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
