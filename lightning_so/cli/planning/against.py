"""A forecast beside what a run has recorded."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from lightning_so.cli.planning.forecast import Forecast
from lightning_so.cli.planning.steps import Pace
from lightning_so.core.plan.table import amount
from lightning_so.errors import StateError
from lightning_so.report.folder import recordings

#: What a recording calls its memory, and the parts of a forecast that it is.
PARTS = {
    "parameters": ("weights",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer's moments",),
    "curvature": ("factors", "bases and roots", "saved weights", "work space"),
}


def compared(run: Path, found: Forecast, pace: Pace | None) -> Iterator[str]:
    """Lines that set a run's memory and seconds against what was foretold.

    Args:
        run: The run's folder.
        found: The forecast.
        pace: Lengths of steps; seconds where they were measured.

    Yields:
        Lines.

    Raises:
        StateError: If it has no recording, or one without memory.
    """
    recorded = recordings(run)
    yield ""
    yield f"Against {run} ({len(recorded)} of {recorded[0]['ranks']} ranks recorded):"
    for each in recorded:
        rank, memory = each["rank"], each.get("memory") or {}
        if not memory:
            raise StateError(f"{run} has no memory in the recording of rank {rank}: take one that has ended.")
        foretold = found.memory.get(rank, found.memory[found.heaviest])
        of_rank = f", rank {rank}" if len(recorded) > 1 else ""
        for part, names in PARTS.items():
            predicted = sum(foretold.get(name, 0) for name in names)
            yield _line(part + of_rank, amount(predicted), amount(memory.get(part, 0)), predicted, memory.get(part, 0))
    measured = _seconds(recorded[0])
    if measured is not None and pace is not None and pace.unit == "s":
        predicted = pace.own * pace.median
        yield _line("step", f"{1e3 * predicted:.1f} ms", f"{1e3 * measured:.1f} ms", predicted, measured)
    elif measured is not None:
        yield f"  {'step':<22} not foretold without --measure; measured {1e3 * measured:.1f} ms"


def _seconds(recording: Mapping[str, Any]) -> float | None:
    """The median step that was recorded last."""
    seconds = [each for each in recording["last"].get("step_seconds", []) if each]
    return median(seconds) if seconds else None


def _line(part: str, predicted: str, measured: str, foretold: float, seen: float) -> str:
    off = f"{100 * (foretold / seen - 1):+.1f} %" if seen else "-"
    return f"  {part:<22} foretold {predicted:>10}, measured {measured:>10}  {off}"
