"""Time of steps, and of their stages."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from lightning_so.report.charts.chart import (
    STEP,
    Axis,
    Chart,
    Columns,
    Missing,
    Table,
    joined,
    lines,
    logarithmic,
    rounded,
)
from lightning_so.report.charts.thin import series
from lightning_so.report.run import Run
from lightning_so.report.verdict.finding import figure

#: The last steps, which are told one by one.
STEPS = 200
#: Of steps by stage, those that take more than `CUT` times what 95 % do not exceed are cut off at `LEFT` times that.
CUT, LEFT = 3.0, 1.3
#: Stages in the order of a step; others follow.
ORDER = ("step", "observe", "guard", "solve", "act", "finish")
#: What no stage of ours accounts for.
REST = "the training's own"
NO_SPANS = "Recorded by SecondOrder, whose stages are timed."


def step_time(runs: Sequence[Run]) -> Chart | Missing:
    """Seconds of each step, of the slowest rank."""
    found = [run for run in runs if run.has("step_seconds")]
    if not found:
        return Missing("Time of a step", "Recorded of every run of two steps or more.")
    parts, rows = [], []
    for run in found:
        steps, seconds = run.known("step_seconds")
        ms = [1e3 * value for value in seconds]
        parts.append({"step": steps, "ms": rounded(ms), "run": [run.name] * len(steps)})
        known = sorted(ms)
        rows.append([run.name, *(figure(known[min(len(known) - 1, int(q * len(known)))]) for q in (0.5, 0.95, 1.0))])
    main = joined(parts)
    y = Axis("ms", "milliseconds", logarithmic(main["ms"], 10))
    y = y if y.log else Axis("ms", "milliseconds", more={"scale": {"zero": True}})
    said = " ".join(f"{row[0]}: median {row[1]} ms, 95 % within {row[2]} ms, the longest {row[3]} ms." for row in rows)
    table = Table(["run", "median, ms", "95 %, ms", "longest, ms"], rows)
    return Chart(
        "steps", "Time of a step", said, lines(STEP, y, "run", [r.name for r in runs]), series(parts, "ms"), table
    )


def colours(stages: Sequence[str]) -> dict[str, Any]:
    """A colour for each stage, the same in all charts; the training's own time is grey."""
    known = {"act": "c1", "solve": "c2", "observe": "c3", "finish": "c4", "guard": "c5", REST: "mark"}
    others = iter(["c6", "c7", "c8"] * len(stages))
    return {"domain": list(stages), "range": [f"var(--{known.get(stage) or next(others)})" for stage in stages]}


def stages(run: Run, suffix: str = "") -> Chart | Missing:
    """Milliseconds of each stage by step, of the first rank, one above the other."""
    title = "A step by stage" + (f": {run.name}" if suffix else "")
    parts = _by_stage(run)
    if not parts["step"]:
        return Missing(title, NO_SPANS)
    names = sorted(set(parts["stage"]), key=lambda stage: (place(stage), stage))
    medians = {n: median(ms for ms, s in zip(parts["ms"], parts["stage"]) if s == n) for n in names}
    said = (
        f"Rank {run.first['rank']}: "
        + ", ".join(f"{name} {figure(ms)} ms" for name, ms in medians.items())
        + " (medians)."
    )
    colour = {"field": "stage", "type": "nominal", "scale": colours(names), "title": None}
    told = [{"field": "at", "title": "step", "format": ",d"}, {"field": "stage"}]
    told.append({"field": "ms", "title": "milliseconds", "format": ".4~g"})
    wholes = dict[int, float]()
    for at, ms in zip(parts["at"], parts["ms"]):
        wholes[at] = wholes.get(at, 0.0) + ms
    usual = sorted(wholes.values())[int(0.95 * (len(wholes) - 1))]
    cut = max(wholes.values()) > CUT * usual
    said += f" Steps of more than {figure(LEFT * usual)} ms are cut off." if cut else ""
    scale = {"domain": [0, LEFT * usual]} if cut else {}
    y = {"field": "ms", "type": "quantitative", "title": "milliseconds", "stack": True, "scale": scale}
    spec = {
        "height": 220,
        "data": {"name": "main"},
        "mark": {"type": "bar", "binSpacing": 0, "clip": cut},
        "encoding": {
            "x": {**STEP.encoding(), "bin": {"binned": True, "step": 1}},
            "x2": {"field": "next"},
            "y": y,
            "color": colour,
            "order": {"field": "order", "type": "quantitative"},
            "tooltip": told,
        },
    }
    return Chart(f"stages{suffix}", title, said, spec, {"main": parts})


def _by_stage(run: Run) -> Columns:
    """Sums of each stage and step; what is left of it is the training's own."""
    spans = run.first.get("spans") or []
    sums = dict[int, dict[str, float]]()
    for stage, step, _, seconds, _ in spans:
        if seconds is not None:
            of_step = sums.setdefault(step, {})
            of_step[stage] = of_step.get(stage, 0.0) + 1e3 * seconds
    if not any(stage != "step" for of_step in sums.values() for stage in of_step):
        return {"step": []}
    rows = []
    for step in sorted(sums)[-STEPS:]:
        of_step = sums[step]
        whole, parts = of_step.pop("step", None), of_step
        if whole is not None:
            parts = {**parts, REST: max(0.0, whole - sum(parts.values()))}
        rows += [(step, stage, ms) for stage, ms in parts.items()]
    return {
        "at": [step for step, _, _ in rows],
        "step": [step - 0.5 for step, _, _ in rows],
        "next": [step + 0.5 for step, _, _ in rows],
        "stage": [stage for _, stage, _ in rows],
        "ms": rounded([ms for _, _, ms in rows]),
        # By numbers, as Vega-Lite would make an expression of names to sort by.
        "order": [place(stage) for _, stage, _ in rows],
    }


def place(stage: str) -> int:
    """Where a stage stands in a step; what is the training's own comes first, and lies lowest."""
    if stage == REST:
        return -1
    return ORDER.index(stage) if stage in ORDER else len(ORDER)
