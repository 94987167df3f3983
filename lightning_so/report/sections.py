"""Which charts stand in which part of the page, in the order in which they are read."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_so.report.charts import curvature, gantt, layers, loss, memory, shadow, time
from lightning_so.report.charts.chart import STEP, Axis, Chart, Missing
from lightning_so.report.run import Run
from lightning_so.report.verdict.finding import Finding

SECONDS = Axis("seconds", "seconds", form=",.3~f")


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: For links.
        title: Its heading.
        charts: Those that have data.
        missing: Those that have none.
    """

    name: str
    title: str
    charts: Sequence[Chart]
    missing: Sequence[Missing]


def sections(runs: Sequence[Run], findings: Sequence[Finding]) -> list[Section]:
    """Every chart.

    Args:
        runs: One, or two side by side: in one picture where that can be, else one below the other.
        findings: Of the first, for marks.

    Returns:
        The parts.
    """
    each = [(run, "" if len(runs) == 1 else f"-{number}") for number, run in enumerate(runs)]
    scale = layers.trust_scale(runs)
    health = (("dead", "Dead units"), ("saturated", "Saturated units"), ("rank", "Effective rank of outputs"),
              ("largest", "Size of outputs"))  # fmt: skip
    return [
        _section("loss", "Loss", [loss.loss(runs, findings, STEP), loss.loss(runs, findings, SECONDS),
                                  loss.gradient(runs), loss.rate(runs)]),
        _section("time", "Time", [time.step_time(runs), *(time.stages(*one) for one in each),
                                  *(gantt.gantt(*one) for one in each), *(gantt.solves(*one) for one in each)]),
        _section("curvature", "Curvature", [curvature.staleness(runs), curvature.drift(runs), curvature.overhead(runs),
                                            curvature.blocks(runs),
                                            curvature.sharpness(runs), *(curvature.density(*one) for one in each),
                                            curvature.noise(runs)]),
        _section("layers", "Layers", [*(layers.trust(run, scale, suffix) for run, suffix in each),
                                      *(layers.cosine(*one) for one in each)]),
        _section("units", "Health of units", [layers.units(run, quantity, title, suffix)
                                              for quantity, title in health for run, suffix in each]),
        _section("memory", "Memory", [memory.memory(runs)]),
        _section("shadow", "Shadow", [shadow.shadow(*one) for one in each]),
    ]  # fmt: skip


def _section(name: str, title: str, charts: Sequence[Chart | Missing]) -> Section:
    there = [chart for chart in charts if isinstance(chart, Chart)]
    return Section(name, title, there, [chart for chart in charts if isinstance(chart, Missing)])
