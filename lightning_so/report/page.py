"""The page: verdict, figures, charts, and what the run was, in one file that needs no other and no network."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

from lightning_so.errors import MissingError, installed_by
from lightning_so.report import about, figures
from lightning_so.report.charts.chart import Chart, Missing
from lightning_so.report.html import data, listing, prose, table, text
from lightning_so.report.run import Run
from lightning_so.report.sections import Section, sections
from lightning_so.report.verdict.finding import BAD, NOTE, WARN, Finding
from lightning_so.report.verdict.judge import Verdict, judge

#: By which a report of ours is known.
GENERATOR = "lightning_so report"
#: Marks up to which a chart is made of elements, which stay sharp and can be copied; beyond, of pixels.
ELEMENTS = 1500
TAGS = {BAD: "Broken", WARN: "Look here", NOTE: "Good to know"}


def page(runs: Sequence[Run]) -> str:
    """Write a report.

    Args:
        runs: The run; a second one to stand beside it.

    Returns:
        HTML.
    """
    verdicts = [judge(run) for run in runs]
    parts = sections(runs, verdicts[0].findings)
    charts = [chart for part in parts for chart in part.charts]
    known = {chart.name for chart in charts} | {"events"}
    extra = [("events", "Events", about.events(runs)), ("about", "The run", about.settings(runs))]
    shown = [
        ("verdict", "Verdict"),
        *((f"part-{part.name}", part.title) for part in parts),
        *((name, title) for name, title, _ in extra),
    ]
    body = [_verdict(runs, verdicts, known), *map(_section, parts)]
    body += [f'<section id="{name}" aria-labelledby="of-{name}"><h2 id="of-{name}">{title}</h2>{inner}</section>'
             for name, title, inner in extra]  # fmt: skip
    library, script = _library(), _own("page.js")
    heading = " against ".join(run.name for run in runs)
    return Template(_own("page.html")).substitute(
        generator=GENERATOR,
        hashes=" ".join(map(_hash, (library, script))),
        title=text(f"{heading}: {_headline(verdicts[0])}"),
        css=_own("page.css"),
        heading=text(heading),
        chips="".join(f"<li>{text(chip)}</li>" for run in runs for chip in figures.chips(run, len(runs) > 1)),
        contents="".join(f'<li><a href="#{name}">{text(title)}</a></li>' for name, title in shown),
        body="\n".join(body),
        version=text((runs[0].facts.get("versions") or {}).get("lightning_so", "")),
        charts=data([_told(chart) for chart in charts]),
        library=library,
        script=script,
    )


def _own(name: str) -> str:
    return (files("lightning_so.report") / name).read_text(encoding="utf-8")


def _library() -> str:
    """Vega, Vega-Lite and vega-embed in one; raises MissingError where they are not installed."""
    try:
        import vl_convert
    except ImportError as error:
        raise MissingError(f"report needs vl-convert-python: {installed_by('report')}.") from error
    # Inside a script no text may end it.
    return (
        vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        .replace("</script", "<\\/script")
        .replace("<!--", "<\\!--")
    )


def _hash(script: str) -> str:
    """By which a browser knows the only scripts that it may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _told(chart: Chart) -> dict[str, Any]:
    renderer = "svg" if chart.marks <= ELEMENTS else "canvas"
    return {"name": chart.name, "spec": chart.spec, "data": chart.data, "letters": chart.letters, "renderer": renderer}


# ---------------------------------------------------------------------- parts
def _headline(verdict: Verdict) -> str:
    if not verdict.findings:
        return "nothing found that did not go well"
    broken = sum(each.severity == BAD for each in verdict.findings)
    odd = sum(each.severity == WARN for each in verdict.findings)
    if not broken and not odd:
        return f"all went well; {_things(len(verdict.findings))} good to know"
    said = [_things(broken) + " broken"] if broken else []
    said += [_things(odd) + " worth a look"] if odd else []
    return " and ".join(said)


def _things(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    number = words[count] if count < len(words) else str(count)
    return f"{number} thing is" if count == 1 else f"{number} things are"


def _verdict(runs: Sequence[Run], verdicts: Sequence[Verdict], known: set[str]) -> str:
    cards = []
    for number, (run, verdict) in enumerate(zip(runs, verdicts)):
        name = f"<h3>{text(run.name)}</h3>" if len(runs) > 1 else ""
        line = _headline(verdict)
        head = (
            f'<p class="headline"><span class="dot" aria-hidden="true"></span>{text(line[0].upper() + line[1:])}.</p>'
        )
        found = "".join(_finding(each, known, number) for each in verdict.findings)
        found = f'<div class="findings">{found}</div>' if found else ""
        good = listing(map(prose, verdict.good), "good")
        if verdict.findings:
            good = f"<details><summary>What went well: {len(verdict.good)} checks</summary>{good}</details>"
        unseen = _unseen(verdict.missing)
        cards.append(f'<div class="card verdict {verdict.worst or "ok"}">{name}{head}{found}{good}{unseen}</div>')
    tiles = figures.beside(runs) if len(runs) > 1 else figures.tiles(runs[0])
    return (
        '<section id="verdict" aria-labelledby="of-verdict" tabindex="-1"><h2 id="of-verdict">Verdict</h2>'
        f"{''.join(cards)}{tiles}</section>"
    )


def _finding(each: Finding, known: set[str], number: int) -> str:
    place = next((name for name in (each.chart, f"{each.chart}-{number}") if name in known), None)
    link = f' <a href="#{place}">See it</a>' if place else ""
    return (
        f'<div class="finding {each.severity}"><p><span class="tag">{TAGS[each.severity]}</span>'
        f'<span class="what">{prose(each.what)}</span></p>'
        f'<p class="why">{prose(each.where)}: {prose(each.why)}{link}</p>'
        f'<p class="move"><b>Next:</b> {prose(each.move)}</p></div>'
    )


def _unseen(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    inner = listing(map(prose, missing), "absent")
    return f"<details><summary>Not looked at: {len(missing)}</summary>{inner}</details>"


def _section(part: Section) -> str:
    inner = "".join(map(_figure, part.charts))
    inner = f'<div class="charts">{inner}</div>' if inner else ""
    return (
        f'<section id="part-{part.name}" aria-labelledby="of-{part.name}">'
        f'<h2 id="of-{part.name}">{text(part.title)}</h2>'
        f"{inner}{_absent(part.missing)}</section>"
    )


def _absent(missing: Sequence[Missing]) -> str:
    return (
        listing((f"<b>{text(each.title)}</b> is not there. {prose(each.how)}" for each in missing), "absent")
        if missing
        else ""
    )


def _figure(chart: Chart) -> str:
    note = f'<span class="hint">{prose(chart.note)}</span>' if chart.note else ""
    more = ""
    if chart.table is not None and chart.table.rows:
        inner = table(chart.table.head, chart.table.rows)
        more = (
            f'<details><summary>Numbers<span class="unseen"> of {text(chart.title)}</span></summary>{inner}</details>'
        )
    bound = "params" in chart.spec
    role = 'role="group"' if bound else 'role="img"'
    return (
        f'<figure id="{chart.name}" class="{"wide" if chart.wide else ""}"><h3>{text(chart.title)}</h3>'
        f'<div class="chart" id="chart-{chart.name}" {role} aria-label="{text(chart.title)}. {text(chart.said)}" '
        f'style="min-height: {_height(chart)}px"></div>'
        f"<figcaption>{text(chart.said)}{note}</figcaption>{more}</figure>"
    )


def _height(chart: Chart) -> int:
    """Pixels that are kept free until the chart is drawn, about."""
    return chart.spec["height"] + 50
