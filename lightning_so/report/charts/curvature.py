"""Second order: what it cost, how old its bases are, and the spectrum."""

from collections.abc import Sequence
from math import log10
from typing import Any

from lightning_so.report.charts.chart import (
    STEP,
    Axis,
    Chart,
    Missing,
    Table,
    guide,
    joined,
    lines,
    logarithmic,
    rounded,
)
from lightning_so.report.charts.thin import series
from lightning_so.report.run import Run
from lightning_so.report.verdict import curvature
from lightning_so.report.verdict.finding import figure

MONITOR = "`CurvatureMonitor(every=100)` among the callbacks records it."
#: Sides of a density's bars: values over so many powers of ten from the largest, by sign.
DECADES, PARTS = 5, 4


def _columns(runs: Sequence[Run], names: dict[str, str], factor: float = 1.0) -> list[dict[str, list[Any]]]:
    """Columns of runs one below the other, told apart by run and name."""
    parts = []
    for run in runs:
        for name, said in names.items():
            if run.has(name):
                steps, numbers = run.known(name)
                values = rounded([factor * number for number in numbers])
                series = f"{run.name}: {said}" if len(runs) > 1 else said
                parts.append({"step": steps, "value": values, "series": [series] * len(steps)})
    return parts


def _lines(
    name: str, title: str, runs: Sequence[Run], names: dict[str, str], y: Axis, how: str, factor: float = 1.0
) -> Chart | Missing:
    parts = _columns(runs, names, factor)
    if not parts:
        return Missing(title, how)
    main = joined(parts)
    rows = []
    for part in parts:
        values = part["value"]
        rows.append([part["series"][0], figure(values[-1]), figure(min(values)), figure(max(values))])
    said = " ".join(f"{row[0]}: {row[1]} at last, {row[2]} to {row[3]}." for row in rows)
    y = Axis("value", y.title, y.log and logarithmic(main["value"]), y.form, y.more)
    spec = lines(STEP, y, "series", [part["series"][0] for part in parts])
    return Chart(name, title, said, spec, series(parts, "value"), Table(["", "at last", "least", "largest"], rows))


def staleness(runs: Sequence[Run]) -> Chart | Missing:
    """Ages of bases."""
    names = {"staleness_max": "oldest basis", "staleness_p95": "95 % are younger"}
    y = Axis("value", "steps since it was solved", more={"scale": {"zero": True}})
    how = "Recorded by SecondOrder with a method that solves (SOAP, K-FAC, Shampoo)."
    return _lines("staleness", "Staleness of bases", runs, names, y, how)


def drift(runs: Sequence[Run]) -> Chart | Missing:
    """How far bases have turned by the solves of a step."""
    y = Axis("value", "share that left the old axes", more={"scale": {"zero": True}})
    how = "Recorded by SecondOrder with a method that has eigenbases (SOAP, EKFAC)."
    return _lines("drift", "Drift of bases", runs, {"drift": "the basis that turned most"}, y, how)


def overhead(runs: Sequence[Run]) -> Chart | Missing:
    """The share of the time that second order took."""
    names = {"overhead": "taken", "overhead_predicted": "foretold", "overhead_measured": "measured"}
    y = Axis("value", "% of the time", more={"scale": {"zero": True}})
    chart = _lines("overhead", "What second order takes", runs, names, y, "Recorded by SecondOrder.", 100.0)
    granted = [bound for run in runs if (bound := curvature.bound(run)) is not None]
    if isinstance(chart, Missing) or not granted:
        return chart
    marks = {"at": [100 * bound for bound in granted], "said": [f"max_overhead={bound:g}" for bound in granted]}
    spec = {**chart.spec, "layer": [*chart.spec["layer"], guide("at", "y", "marks")]}
    return Chart(chart.name, chart.title, chart.said, spec, {**chart.data, "marks": marks}, chart.table)


def blocks(runs: Sequence[Run]) -> Chart | Missing:
    """Blocks by what was done to them."""
    names = {"rotated": "rotated", "bent": "bent", "preconditioned": "preconditioned"}
    y = Axis("value", "blocks", form="d", more={"scale": {"zero": True}})
    return _lines("blocks", "Blocks by action", runs, names, y, "Recorded by SecondOrder.")


def sharpness(runs: Sequence[Run]) -> Chart | Missing:
    """The largest eigenvalue, and what the learning rate bears."""
    title = "Largest eigenvalue against 2 / learning rate"
    parts, rows = [], []
    for run in runs:
        looks = [look for look in run.spectra if look.get("top") and look["top"][0] is not None]
        more = f"{run.name}: " if len(runs) > 1 else ""
        steps = [look["step"] for look in looks]
        if looks:
            top = rounded([look["top"][0] for look in looks])
            parts.append({"step": steps, "value": top, "series": [f"{more}largest eigenvalue"] * len(steps)})
            edge = rounded([2 / look["lr"] if look.get("lr") else None for look in looks])
            parts.append({"step": steps, "value": edge, "series": [f"{more}2 / learning rate"] * len(steps)})
            pick = looks[:: max(1, len(looks) // 10)]
            rest = ("bottom", "trace", "negative")
            rows += [
                [run.name, f"{look['step']:,}", figure(look["top"][0]), *(figure(look.get(name)) for name in rest)]
                for look in pick
            ]
    if not parts:
        return Missing(title, MONITOR)
    main = joined(parts)
    y = Axis("value", "curvature", logarithmic(main["value"], 8))
    said = " ".join(
        f"{part['series'][0]}: {figure(part['value'][0])} at first, {figure(part['value'][-1])} at last."
        for part in parts
    )
    table = Table(["run", "step", "largest", "least", "trace", "share of negative"], rows)
    note = "Plain gradient descent is unstable above the edge; Adam and second order have edges of their own."
    return Chart(
        "sharpness",
        title,
        said,
        lines(STEP, y, "series", [part["series"][0] for part in parts]),
        series(parts, "value"),
        table,
        note=note,
    )


def density(run: Run, suffix: str = "") -> Chart | Missing:
    """Shares of the eigenvalues by sign and power of ten, over time."""
    title = "Density of the spectrum" + (f": {run.name}" if suffix else "")
    looks = [look for look in run.spectra if look.get("values") and look.get("weights")]
    if not looks:
        return Missing(title, MONITOR)
    largest = max(abs(value) for look in looks for value in look["values"] if value is not None) or 1.0
    bins = 2 * DECADES * PARTS + 1
    steps = [look["step"] for look in looks]
    nexts = [*steps[1:], steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1)]
    main = {"step": [], "next": [], "low": [], "high": [], "share": [], "about": []}
    for look, step, after in zip(looks, steps, nexts):
        shares, total = [0.0] * bins, sum(weight or 0.0 for weight in look["weights"]) or 1.0
        for value, weight in zip(look["values"], look["weights"]):
            if value is not None and weight is not None:
                shares[_bin(value / largest)] += weight / total
        for place, share in enumerate(shares):
            if share > 0:
                low = (place - DECADES * PARTS - 0.5) / PARTS
                cell = (step, after, low, low + 1 / PARTS, float(f"{share:.3g}"), figure(_middle(place) * largest))
                for column, value in zip(main.values(), cell):
                    column.append(value)
    negative = [look.get("negative") for look in looks]
    said = f"{len(looks)} looks; the largest eigenvalue in size is {figure(largest)}; "
    said += f"the share of negative curvature is {figure(negative[0])} at first and {figure(negative[-1])} at last."
    # In powers of ten from what is taken for zero; the text is made of the number alone.
    size = f"format({float(largest)!r} * pow(10, abs(datum.value) - {DECADES}), '.1~e')"
    text = f"datum.value == 0 ? '0' : (datum.value < 0 ? '-' : '') + {size}"
    axis = {"values": [-DECADES, 2 - DECADES, 0, DECADES - 2, DECADES], "labelExpr": text, "grid": False}
    y = {"field": "low", "type": "quantitative", "title": "eigenvalue, by sign and size", "axis": axis}
    told = [{"field": "step", "format": ",d"}, {"field": "about", "title": "eigenvalue, about"}]
    colour = {"field": "share", "type": "quantitative", "title": "share", "scale": {"type": "log", "range": "heatmap"}}
    colour["legend"] = {"values": [0.001, 0.01, 0.1, 1], "format": "~%"}
    spec = {
        "height": 260,
        "data": {"name": "main"},
        "mark": {"type": "rect"},
        "encoding": {
            "x": STEP.encoding(), "x2": {"field": "next"}, "y": y, "y2": {"field": "high"}, "color": colour,
            "tooltip": [*told, {"field": "share", "format": ".2~%"}],
        },
    }  # fmt: skip
    return Chart(f"density{suffix}", title, said, spec, {"main": main})


def _bin(value: float) -> int:
    """Of a value between -1 and 1, its place by sign and power of ten; those below all powers are zero's."""
    if not value or log10(abs(value)) <= -DECADES:
        return DECADES * PARTS
    place = min(DECADES * PARTS, 1 + int((log10(abs(value)) + DECADES) * PARTS))
    return DECADES * PARTS + (place if value > 0 else -place)


def _middle(place: int) -> float:
    """The value in the middle of a place."""
    away = place - DECADES * PARTS
    return 0.0 if not away else (1 if away > 0 else -1) * 10 ** ((abs(away) - 0.5) / PARTS - DECADES)


def noise(runs: Sequence[Run]) -> Chart | Missing:
    """The batch size at which noise and gradient are alike."""
    parts = []
    for run in runs:
        looks = [look for look in run.spectra if look.get("noise_scale") is not None]
        if looks:
            values = rounded([look["noise_scale"] for look in looks])
            parts.append({"step": [look["step"] for look in looks], "value": values, "run": [run.name] * len(looks)})
    if not parts:
        return Missing(
            "Gradient noise scale", "`CurvatureMonitor` records it where a step has several micro-batches or ranks."
        )
    main = joined(parts)
    said = " ".join(f"{part['run'][0]}: {figure(part['value'][-1])} at last." for part in parts)
    y = Axis("value", "samples", logarithmic(main["value"]))
    note = "Batches far below this are mostly noise; batches far above it waste samples (McCandlish et al. 2018)."
    return Chart(
        "noise",
        "Gradient noise scale",
        said,
        lines(STEP, y, "run", [run.name for run in runs]),
        series(parts, "value"),
        note=note,
    )
