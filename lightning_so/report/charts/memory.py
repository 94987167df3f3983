"""Memory of each rank by part."""

from collections.abc import Sequence

from lightning_so.report.charts.chart import Chart, Missing, Table
from lightning_so.report.run import Run
from lightning_so.report.verdict.finding import figure

MIB = 2**20


def memory(runs: Sequence[Run]) -> Chart | Missing:
    """Bytes by part, of the rank that holds most."""
    main = {"run": [], "part": [], "mib": [], "order": []}
    rows = []
    for run in runs:
        held = [each["memory"] for each in run.recordings if each.get("memory")]
        if not held:
            continue
        most = max(held, key=lambda parts: sum(parts.values()))
        for order, (part, size) in enumerate(most.items()):
            for column, value in zip(main.values(), (run.name, part, float(f"{size / MIB:.5g}"), order)):
                column.append(value)
        rows.append((run.name, most, len(held)))
    if not rows:
        return Missing("Memory by part", "Recorded of every optimizer that Lightning steps.")
    parts = list(dict.fromkeys(main["part"]))
    said = " ".join(
        f"{name}: {figure(sum(most.values()) / MIB)} MiB on the fullest of {ranks} rank(s), "
        + ", ".join(f"{part} {figure(size / MIB)}" for part, size in most.items()) + "."
        for name, most, ranks in rows
    )  # fmt: skip
    spec = {
        "height": 44 * len(rows),
        "data": {"name": "main"},
        "mark": {"type": "bar", "style": "part"},
        "encoding": {
            "x": {"field": "mib", "type": "quantitative", "title": "MiB", "stack": True},
            "y": {"field": "run", "type": "nominal", "title": None, "axis": {"labelLimit": 120}},
            "color": {"field": "part", "type": "nominal", "scale": {"domain": parts}, "title": None},
            "order": {"field": "order", "type": "quantitative"},
            "tooltip": [{"field": "run"}, {"field": "part"}, {"field": "mib", "title": "MiB", "format": ",.4~g"}],
        },
    }
    table = Table(["part", *(f"{name}, MiB" for name, _, _ in rows)],
                  [[part, *(figure(most.get(part, 0) / MIB) for _, most, _ in rows)] for part in parts])  # fmt: skip
    return Chart("memory", "Memory by part", said, spec, {"main": main}, table)
