"""Loss against steps and seconds, gradients, learning rate."""

from collections.abc import Sequence

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
from lightning_so.report.run import Number, Run
from lightning_so.report.verdict import levels
from lightning_so.report.verdict.finding import Finding, figure
from lightning_so.report.verdict.levels import smooth

#: Of a window whose median is the thick line.
SMOOTH = 25
#: Losses above this many times what 98 % of them do not exceed are cut off in the picture, and said.
CUT = 5.0
#: Part of the run that is its beginning.
EARLY = 0.02


def loss(runs: Sequence[Run], findings: Sequence[Finding], along: Axis) -> Chart | Missing:
    """The loss of each run, faint, and medians of it.

    Args:
        runs: One or two.
        findings: What is marked in the picture.
        along: Steps, or seconds.

    Returns:
        The chart.
    """
    against = "seconds" if along.column == "seconds" else "steps"
    title = f"Loss against {against}"
    parts = [_losses(run) for run in runs if run.has("loss")]
    if not parts:
        return Missing(title, "`training_step` gives Lightning no loss that could be recorded.")
    main = joined(parts)
    known = sorted(value for value in main["loss"] if value is not None)
    log, top = logarithmic(known, 10), known[min(len(known) - 1, int(0.98 * len(known)))]
    cut = not log and known[0] >= 0 and known[-1] > CUT * top
    y = Axis("middle", "loss", log, more={"scale": {"zero": False, "domainMax": 1.2 * top}} if cut else {})
    raw = Axis("loss", "loss", log)
    names = [run.name for run in runs]
    colour = {
        "field": "run",
        "type": "nominal",
        "scale": {"domain": names},
        "title": None,
        "legend": {} if len(runs) > 1 else None,
    }
    faint = {
        "data": {"name": "main"},
        "mark": {"type": "line", "style": "faint", "clip": cut},
        "encoding": {"x": along.encoding(), "y": {**y.encoding(), "field": "loss"}, "color": colour},
    }
    under, data = [faint], series(parts, "loss")
    # What holds from the first looks on is no moment of the run.
    early = runs[0].first["begun"].get("step", 0) + EARLY * runs[0].length
    told = [(each.steps[0], each.what) for each in findings if each.steps and each.steps[0] > early]
    marks = {"step": [step for step, _ in told], "said": [said for _, said in told]}
    if marks["step"] and against == "steps" and len(runs) == 1:
        under, data = [*under, guide("step", "x", "marks")], {**data, "marks": marks}
    said = " ".join(_said(run, against) for run in runs if run.has("loss"))
    spec = lines(along, y, "run", names, under=under, more=[raw, STEP] if against == "seconds" else [raw])
    return Chart(f"loss-{against}" if against == "seconds" else "loss", title, said, spec, data, _table(runs))


def _losses(run: Run) -> dict[str, list]:
    steps, losses = run.column("loss")
    seconds = dict(zip(*run.column("seconds")))
    known = [loss for loss in losses if loss is not None]
    medians = iter(smooth(known, SMOOTH))
    middle = [None if loss is None else next(medians) for loss in losses]
    return {
        "step": steps,
        "seconds": rounded([seconds.get(step) for step in steps]),
        "loss": rounded(losses),
        "middle": rounded(middle),
        "run": [run.name] * len(steps),
    }


def ends(run: Run) -> tuple[Number, Number, Number]:
    """The loss at the beginning, at the end, and the least."""
    known = run.known("loss")[1]
    return (*levels.ends(known), min(known)) if known else (None, None, None)


def seconds(run: Run) -> Number:
    """Wall seconds of the whole run."""
    return next(reversed(run.known("seconds")[1]), None)


def _said(run: Run, against: str) -> str:
    first, last, least = ends(run)
    length = f"{figure(seconds(run))} seconds" if against == "seconds" else f"{run.length:,} steps"
    return f"{run.name}: from {figure(first)} to {figure(last)} in {length}, {figure(least)} at the least."


def _table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        known = list(zip(*run.known("loss")))
        tenth = [known[round(n * (len(known) - 1) / 10)] for n in range(11)] if known else []
        rows += [[run.name, f"{step:,}", figure(loss)] for step, loss in tenth]
    return Table(["run", "step", "loss"], rows)


def gradient(runs: Sequence[Run]) -> Chart | Missing:
    """Norms of all gradients together."""
    found = [run for run in runs if run.has("gradient")]
    if not found:
        return Missing("Gradient norm", "Recorded with automatic optimization, and by SecondOrder.")
    parts = []
    for run in found:
        steps, squares = run.known("gradient")
        norms = [square**0.5 for square in squares]
        parts.append({"step": steps, "norm": rounded(norms), "run": [run.name] * len(steps)})
    main = joined(parts)
    y = Axis("norm", "gradient norm", logarithmic(main["norm"], 5))
    said = " ".join(f"{part['run'][0]}: {_range(part['norm'])}." for part in parts)
    return Chart(
        "gradient", "Gradient norm", said, lines(STEP, y, "run", [r.name for r in runs]), series(parts, "norm")
    )


def rate(runs: Sequence[Run]) -> Chart | Missing:
    """The learning rate."""
    found = [run for run in runs if run.has("lr")]
    if not found:
        return Missing("Learning rate", "Recorded of every optimizer that Lightning steps.")
    parts = []
    for run in found:
        steps, rates = run.known("lr")
        parts.append({"step": steps, "rate": rounded(rates), "run": [run.name] * len(steps)})
    y = Axis("rate", "learning rate", form="~g", more={"scale": {"zero": True}})
    said = " ".join(f"{part['run'][0]}: {_range(part['rate'])}." for part in parts)
    return Chart(
        "rate", "Learning rate", said, lines(STEP, y, "run", [run.name for run in runs]), series(parts, "rate")
    )


def _range(values: Sequence[Number]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "no number is finite"
    return f"{figure(known[0])} at first, {figure(known[-1])} at last, {figure(min(known))} to {figure(max(known))}"
