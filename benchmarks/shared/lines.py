"""Lines of runs in a file of JSON: which runs it has, and how a curve is written."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.shared.loop import Point


def read(path: Path, kind: Any) -> dict[Any, dict[str, Any]]:
    """The lines of a file by their runs; of two of the same run the later one counts.

    Args:
        path: The file, which need not be there.
        kind: The class of named tuples of what tells a run from all others.
    """
    texts = path.read_text().splitlines() if path.exists() else []
    return {kind(**{name: line[name] for name in kind._fields}): line for line in map(json.loads, texts)}


def done(path: Path, kind: Any) -> set[Any]:
    """The runs that a file has and that need not be run again: those that have not failed."""
    return {run for run, line in read(path, kind).items() if "failed" not in line}


def written(curve: Sequence[Point]) -> dict[str, Any]:
    """A curve, as lines hold it."""
    return {
        "steps": [point.step for point in curve],
        "seconds": [round(point.seconds, 3) for point in curve],
        "losses": [rounded(point.loss) for point in curve],
    }


def rounded(loss: float) -> float | None:
    """To six digits; one that is not finite becomes null."""
    return float(f"{loss:.6g}") if math.isfinite(loss) else None
