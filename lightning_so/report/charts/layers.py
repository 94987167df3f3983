"""Heat maps by layer and step: trust ratios, cosines, health of units."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from lightning_so.report.charts.chart import MARKS, STEP, Chart, Missing, Table, rounded
from lightning_so.report.run import Matrix, Run
from lightning_so.report.verdict.finding import figure

#: Layers of a heat map; of more, those that differ most from the others.
LAYERS = 120
#: Letters of a name on an axis; the last ones tell layers apart.
LETTERS = 24
LABEL = f"length(datum.label) > {LETTERS} ? '…' + slice(datum.label, -{LETTERS - 1}) : datum.label"
UPDATES = "Recorded by SecondOrder(...) and Recorder() of optimizers that Lightning steps."
UNITS = "Recorded of layers with an activation, by looks at every 100th step."


def trust(run: Run, scale: Sequence[float], suffix: str = "") -> Chart | Missing:
    """|update| / |weight| of each layer.

    Args:
        run: The run.
        scale: The ends of the colours.
        suffix: Of the name, where there are two.

    Returns:
        The chart.
    """
    title = "Trust ratios by layer" + (f": {run.name}" if suffix else "")
    matrix = run.trust_ratios()
    if matrix is None:
        return Missing(title, UPDATES)
    colour = _powers(scale)
    last = _last(matrix)
    said = f"Length of a step over length of the weights, of {len(matrix.names)} weights at {len(matrix.steps)} looks."
    if last:
        most, least = max(last, key=last.__getitem__), min(last, key=last.__getitem__)
        said += f" At the end {figure(median(last.values()))} at the median, {figure(last[most])} of {most} at the most"
        said += f" and {figure(last[least])} of {least} at the least."
    note = "About 1e-3 is usual. A row far above the others moves too far; one without colour does not move."
    return _heat(f"trust{suffix}", title, said, matrix, colour, "|dW| / |W|", note)


def trust_scale(runs: Sequence[Run]) -> tuple[float, float]:
    """Numbers between which nearly all trust ratios of some runs are."""
    return _ends([matrix for run in runs if (matrix := run.trust_ratios()) is not None])


def cosine(run: Run, suffix: str = "") -> Chart | Missing:
    """Cosine of each layer's step and of descent."""
    title = "Cosine of update and descent" + (f": {run.name}" if suffix else "")
    matrix = run.cosines()
    if matrix is None:
        return Missing(title, UPDATES)
    colour = {"title": "cosine", "scale": {"range": "diverging", "domain": [-1, 1], "clamp": True}}
    last = _last(matrix)
    said = f"Of {len(matrix.names)} weights at {len(matrix.steps)} looks."
    if last:
        worst = min(last, key=last.__getitem__)
        said += (
            f" At the end {figure(median(last.values()))} at the median, {figure(last[worst])} of {worst} at the least."
        )
    note = "1 is steepest descent; below 0 the step goes uphill on this batch, as momentum does now and then."
    return _heat(f"cosine{suffix}", title, said, matrix, colour, "cosine", note)


def units(run: Run, quantity: str, title: str, suffix: str = "") -> Chart | Missing:
    """A quantity of the outputs of layers.

    Args:
        run: The run.
        quantity: "dead", "saturated", "rank" or "largest".
        title: The heading.
        suffix: Of the name, where there are two.

    Returns:
        The chart.
    """
    title += f": {run.name}" if suffix else ""
    matrix = run.units(quantity)
    if matrix is not None:
        there = [name for name, numbers in matrix.layers() if any(number is not None for number in numbers)]
        matrix = _picked(matrix, there)
    if matrix is None or not matrix.names:
        return Missing(title, UNITS)
    share = {"title": "share", "scale": {"range": "heatmap", "domain": [0, 1]}, "legend": {"format": "%"}}
    colour = share if quantity in ("dead", "saturated") else _powers(_ends([matrix]))
    last = _last(matrix)
    most, least = max(last, key=last.__getitem__), min(last, key=last.__getitem__)
    said = (
        f"Of {len(matrix.names)} layers at {len(matrix.steps)} looks. At the end {figure(last[least])} of {least} at "
    )
    said += f"the least, {figure(last[most])} of {most} at the most."
    return _heat(f"{quantity}{suffix}", title, said, matrix, colour, quantity)


def _ends(matrices: Sequence[Matrix]) -> tuple[float, float]:
    """Numbers between which nearly all of some matrices are, a factor of ten apart at least."""
    known = sorted(value for matrix in matrices for row in matrix.rows for value in row if value and value > 0)
    if not known:
        return 1e-5, 1e-1
    low, high = known[int(0.02 * (len(known) - 1))], known[int(0.98 * (len(known) - 1))]
    return float(f"{min(low, high / 10):.2g}"), float(f"{high:.2g}")


def _powers(ends: Sequence[float]) -> dict[str, Any]:
    """Colours by powers of ten."""
    scale = {"type": "log", "range": "heatmap", "domain": list(ends), "clamp": True}
    return {"title": None, "scale": scale, "legend": {"format": "~g", "tickCount": 3}}


def _heat(
    name: str, title: str, said: str, matrix: Matrix, colour: dict[str, Any], quantity: str, note: str = ""
) -> Chart:
    """A row of each layer, a column of each look; what is not known has no colour."""
    names = _outstanding(matrix)
    told = _picked(matrix, names)
    every = max(1, -(-len(told.steps) * len(names) // MARKS))
    rows = list(zip(told.steps, told.rows))[::every]
    steps = [step for step, _ in rows]
    nexts = [*steps[1:], steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1)]
    main = {
        "step": [step for step in steps for _ in names],
        "next": [step for step in nexts for _ in names],
        "layer": [name for _ in steps for name in names],
        "value": rounded([value for _, row in rows for value in row]),
    }
    height = max(5, min(18, 560 // len(names)))
    axis = {
        "labelExpr": LABEL,
        "labelLimit": 180,
        "labelOverlap": True,
        "title": None,
        "grid": False,
        "domain": False,
        "ticks": False,
    }
    spec = {
        "height": height * len(names),
        "view": {"style": "empty"},
        "data": {"name": "main"},
        "mark": {"type": "rect"},
        "encoding": {
            "x": STEP.encoding(),
            "x2": {"field": "next"},
            "y": {"field": "layer", "type": "nominal", "sort": None, "scale": {"domain": names}, "axis": axis},
            "color": {"field": "value", "type": "quantitative", **colour},
            "tooltip": [
                {"field": "layer"},
                {"field": "step", "format": ",d"},
                {"field": "value", "title": quantity, "format": ".3~g"},
            ],
        },
    }
    last = _last(told)
    table = Table(["layer", f"{quantity} at the end"], [[layer, figure(last.get(layer))] for layer in names])
    return Chart(name, title, said, spec, {"main": main}, table, wide=True, note=note)


def _last(matrix: Matrix) -> dict[str, float]:
    """The last known number of each layer."""
    found = {}
    for name, numbers in matrix.layers():
        known = [number for number in numbers if number is not None]
        if known:
            found[name] = known[-1]
    return found


def _outstanding(matrix: Matrix) -> list[str]:
    """The layers that are shown, in their order: of many, those that are farthest from the others."""
    if len(matrix.names) <= LAYERS:
        return matrix.names
    last = _last(matrix)
    middle = median(last.values()) if last else 0.0
    far = sorted(matrix.names, key=lambda name: -abs(last[name] - middle) if name in last else -math.inf)
    chosen = set(far[:LAYERS])
    return [name for name in matrix.names if name in chosen]


def _picked(matrix: Matrix, names: Sequence[str]) -> Matrix:
    places = [matrix.names.index(name) for name in names]
    return Matrix(matrix.steps, list(names), [[row[place] for place in places] for row in matrix.rows])
