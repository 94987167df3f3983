"""Series of as many points as a line needs: what stands out stays."""

from collections.abc import Sequence
from typing import Any

from lightning_so.report.charts.chart import Columns, joined

#: Points of a line, about the pixels that it is wide; those that a pointer finds.
POINTS, FOUND = 800, 250


def series(parts: Sequence[Columns], y: str) -> dict[str, dict[str, list[Any]]]:
    """Data of `chart.lines`.

    Args:
        parts: Columns of each series, along the line.
        y: The column that is drawn upwards.

    Returns:
        "main", the points of the lines, and "near", the fewer that tell their numbers.
    """
    main = [picked(part, standing(part[y], POINTS)) for part in parts]
    near = [picked(part, range(0, len(part[y]), max(1, len(part[y]) // FOUND))) for part in main]
    return {"main": joined(main), "near": joined(near)}


def standing(values: Sequence[float | None], most: int) -> Sequence[int]:
    """Places of a series that look like all of them: of equal parts the least, the largest, and what is not known.

    Args:
        values: The series.
        most: Points that are enough.

    Returns:
        The places, in order.

    Example:
        >>> standing([0, 1, 0, 0, 9, 0, 1, -5], most=4)
        [0, 1, 4, 7]
    """
    if len(values) <= most:
        return range(len(values))
    length = -(-2 * len(values) // most)
    found = set[int]()
    for begin in range(0, len(values), length):
        part = range(begin, min(begin + length, len(values)))
        known = [place for place in part if values[place] is not None]
        found |= {place for place in part if values[place] is None}
        if known:
            found |= {
                min(known, key=lambda place: values[place] or 0.0),
                max(known, key=lambda place: values[place] or 0.0),
            }
    return sorted(found | {0, len(values) - 1})


def picked(columns: Columns, places: Sequence[int]) -> dict[str, list[Any]]:
    """Rows of columns.

    Args:
        columns: The columns.
        places: Of the rows.

    Returns:
        As many columns.
    """
    return {name: [column[place] for place in places] for name, column in columns.items()}
