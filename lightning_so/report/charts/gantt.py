"""Stages and solves of the last steps by rank, as Gantt charts."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from lightning_so.report.charts.chart import MARKS, STEP, Chart, Missing, Table, rounded
from lightning_so.report.charts.time import NO_SPANS, STEPS, colours, place
from lightning_so.report.run import Run
from lightning_so.report.verdict.finding import figure

#: Steps that are shown first.
SHOWN = 24


def gantt(run: Run, suffix: str = "") -> Chart | Missing:
    """Stages and solves of the last steps by rank; clocks of ranks are set by the ends of steps, which they share."""
    title = "Stages and solves by rank" + (f": {run.name}" if suffix else "")
    spans = _spans(run)
    if not spans:
        return Missing(title, NO_SPANS)
    last = max(span[2] for span in spans)
    many = Counter(span[2] for span in spans)
    steps = min(STEPS, max(1, MARKS // max(1, max(many.values()))))
    spans = [span for span in spans if span[2] > last - steps]
    first, begin = min(span[2] for span in spans), min(span[3] for span in spans)
    stages = sorted({span[1] for span in spans}, key=lambda stage: (place(stage), stage))
    ranks = sorted({span[0] for span in spans})
    blocks = {(step, owner): names for step, owner, _, names in run.solves()}
    main = {
        "rank": [span[0] for span in spans],
        "stage": [span[1] for span in spans],
        "step": [span[2] for span in spans],
        "begin": rounded([1e3 * (span[3] - begin) for span in spans]),
        "end": rounded([1e3 * (span[3] - begin + span[4]) for span in spans]),
        "ms": rounded([1e3 * span[4] for span in spans]),
        "blocks": [", ".join(blocks.get((span[2], span[0]), ())[:6]) if span[1] == "solve" else "" for span in spans],
    }
    medians = _medians(spans)
    rows = [[stage, *(figure(medians.get((stage, rank))) for rank in ranks[:8])] for stage in stages]
    said = f"The last {last - first + 1:,} steps of {len(ranks)} rank(s). Medians of a step, over all ranks: "
    said += ", ".join(
        f"{stage} {figure(median(v for (s, _), v in medians.items() if s == stage))} ms" for stage in stages
    )
    table = Table(["stage, median ms", *(f"rank {rank}" for rank in ranks[:8])], rows)
    note = "Each lane is a rank. The sliders choose the steps; grey is the whole step."
    spec = _gantt(ranks, [stage for stage in stages if stage != "step"], first, last)
    return Chart(f"gantt{suffix}", title, said + ".", spec, {"main": main}, table, wide=True, note=note)


def _spans(run: Run) -> list[tuple[int, str, int, float, float]]:
    """(rank, stage, step, begin, seconds), on the clock of the first rank."""
    found, reference = [], dict[int, float]()
    for each in run.recordings:
        spans = [span for span in each.get("spans") or () if span[2] is not None and span[3] is not None]
        ends = {step: begin + seconds for stage, step, begin, seconds, _ in spans if stage == "step"}
        reference = reference or ends
        both = [ends[step] - reference[step] for step in ends if step in reference]
        late = median(both) if both else 0.0
        found += [(each["rank"], stage, step, begin - late, seconds) for stage, step, begin, seconds, _ in spans]
    return found


def _medians(spans: Sequence[tuple[int, str, int, float, float]]) -> dict[tuple[str, int], float]:
    sums = dict[tuple[str, int], dict[int, float]]()
    for rank, stage, step, _, seconds in spans:
        of_step = sums.setdefault((stage, rank), {})
        of_step[step] = of_step.get(step, 0.0) + 1e3 * seconds
    return {key: median(of_step.values()) for key, of_step in sums.items()}


def _gantt(ranks: Sequence[int], stages: Sequence[str], first: int, last: int) -> dict[str, Any]:
    height = max(14, min(44, 480 // len(ranks)))
    x = {"field": "begin", "type": "quantitative", "title": "milliseconds", "scale": {"zero": False, "nice": False}}
    told = [
        {"field": "stage", "title": "stage"},
        {"field": "rank", "title": "rank"},
        {"field": "step", "title": "step", "format": ",d"},
        {"field": "ms", "title": "milliseconds", "format": ".4~g"},
        {"field": "blocks", "title": "blocks"},
    ]
    colour = {"field": "stage", "type": "nominal", "scale": colours(stages), "title": None}
    shared = {
        "x": x,
        "x2": {"field": "end"},
        "y": {"field": "rank", "type": "ordinal", "title": "rank"},
        "tooltip": told,
    }
    whole = {
        "transform": [{"filter": "datum.stage == 'step'"}],
        "mark": {"type": "bar", "style": "whole"},
        "encoding": shared,
    }
    part = {
        "transform": [{"filter": "datum.stage != 'step'"}],
        "mark": {"type": "bar", "style": "part", "height": {"band": 0.5}},
        "encoding": {**shared, "color": colour},
    }
    width = min(SHOWN, last - first + 1)
    return {
        "height": height * len(ranks),
        "params": [
            {
                "name": "from",
                "value": last - width + 1,
                "bind": {"input": "range", "min": first, "max": last, "step": 1, "name": "first step "},
            },
            {
                "name": "count",
                "value": width,
                "bind": {"input": "range", "min": 1, "max": last - first + 1, "step": 1, "name": "steps shown "},
            },
        ],
        "transform": [{"filter": "datum.step >= from && datum.step < from + count"}],
        "data": {"name": "main"},
        "layer": [whole, part] if stages else [whole],
    }


def solves(run: Run, suffix: str = "") -> Chart | Missing:
    """Who solved what when: one mark a solve, over the last steps."""
    title = "Solves by step and rank" + (f": {run.name}" if suffix else "")
    found = [solve for solve in run.solves() if solve[2] is not None]
    if not found:
        return Missing(title, "Recorded by SecondOrder with a method that solves (SOAP, K-FAC, Shampoo).")
    last = found[-1][0]
    found = [solve for solve in found if solve[0] > last - STEPS][-MARKS:]
    main = {
        "step": [solve[0] for solve in found],
        "next": [solve[0] + 1 for solve in found],
        "rank": [solve[1] for solve in found],
        "ms": rounded([1e3 * (solve[2] or 0.0) for solve in found]),
        "blocks": [len(solve[3]) for solve in found],
        "names": [", ".join(solve[3][:6]) for solve in found],
    }
    by_rank = {rank: [ms for r, ms in zip(main["rank"], main["ms"]) if r == rank] for rank in sorted(set(main["rank"]))}
    rows = [[str(rank), str(len(ms)), figure(sum(ms)), figure(max(ms))] for rank, ms in by_rank.items()]
    sums = [sum(ms) for ms in by_rank.values()]
    said = f"{len(found):,} solves in the last {last - found[0][0] + 1:,} steps, on {len(rows)} rank(s)"
    said += f"; the busiest solved for {figure(max(sums))} ms, the idlest for {figure(min(sums))} ms."
    colour = {"field": "ms", "type": "quantitative", "title": "ms", "scale": {"range": "heatmap"}}
    spec = {
        "height": len(by_rank) * max(10, min(24, 320 // len(by_rank))),
        "data": {"name": "main"},
        "mark": {"type": "rect"},
        "encoding": {
            "x": {**STEP.encoding()},
            "x2": {"field": "next"},
            "y": {"field": "rank", "type": "ordinal", "title": "rank"},
            "color": colour,
            "tooltip": [
                {"field": "step", "format": ",d"},
                {"field": "rank"},
                {"field": "ms", "title": "milliseconds", "format": ".4~g"},
                {"field": "blocks"},
                {"field": "names"},
            ],
        },
    }
    table = Table(["rank", "solves", "ms in all", "longest, ms"], rows)
    return Chart(f"solves{suffix}", title, said, spec, {"main": main}, table, wide=True)
