"""What shadow mode has seen: a method that trains a copy, beside the optimizer that trains."""

from lightning_so.report.charts.chart import STEP, Axis, Chart, Missing, Table, lines, logarithmic, rounded
from lightning_so.report.charts.thin import series
from lightning_so.report.run import Run
from lightning_so.report.verdict.finding import figure

#: Of a copy's samples and the recording's summary, what people read.
FACTS = (("steps_share", "share of the steps that it would have needed"), ("seconds_share", "more time a step"))


def shadow(run: Run, suffix: str = "") -> Chart | Missing:
    """The loss of the training and that of the copy.

    Args:
        run: The run.
        suffix: Of the name, where there are two.

    Returns:
        The chart.
    """
    title = "Loss in the shadow" + (f": {run.name}" if suffix else "")
    known = run.shadow or {}
    samples = [each for each in known.get("samples") or () if each.get("step") is not None]
    if not samples:
        return Missing(
            title, "SecondOrder(..., shadow=True) tries a method on a copy, beside the optimizer that trains."
        )
    names = ["the training", f"{str(known.get('method') or 'the method').partition('(')[0]} on a copy"]
    steps = [each["step"] for each in samples]
    parts = [
        {"step": steps, "value": rounded([each.get(key) for each in samples]), "series": [name] * len(steps)}
        for key, name in zip(("base", "method"), names)
    ]
    said = str(known.get("text") or f"The losses of {names[0]} and of {names[1]}, at {len(samples)} steps.")
    y = Axis("value", "loss", logarithmic([value for part in parts for value in part["value"]]))
    rows = [[said_, f"{known[key]:.0%}"] for key, said_ in FACTS if known.get(key) is not None]
    rows += [[name, figure(part["value"][-1])] for name, part in zip((f"last loss of {name}" for name in names), parts)]
    table = Table(["", names[1]], rows)
    return Chart(f"shadow{suffix}", title, said, lines(STEP, y, "series", names), series(parts, "value"), table)
