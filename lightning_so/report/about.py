"""What happened in a run, and what it was: events, plan, settings and versions; of two runs, what differs."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_so.report.html import table, text
from lightning_so.report.run import Run

#: Facts that have a place of their own on the page.
APART = ("plan", "settings", "versions")
#: Rows of a table of events.
MOST = 500


def events(runs: Sequence[Run]) -> str:
    """What happened, as tables."""
    found = []
    for run in runs:
        name = f"<h3>{text(run.name)}</h3>" if len(runs) > 1 else ""
        rows = [
            [f"{each['step']:,}", each["kind"], each["name"], each["text"], _ranks(run, each)]
            for each in run.events[:MOST]
        ]
        lost = sum(each.get("events_lost") or 0 for each in run.recordings) + max(0, len(run.events) - MOST)
        more = f"<p>{lost:,} more are not shown.</p>" if lost else ""
        inner = (
            table(["step", "what", "block or layer", "why", "ranks"], rows)
            if rows
            else "<p>Nothing out of the ordinary.</p>"
        )
        found.append(f'<div class="card">{name}{inner}{more}</div>')
    return "".join(found)


def _ranks(run: Run, event: Mapping[str, Any]) -> str:
    ranks = event["ranks"]
    return "all" if len(ranks) == len(run.recordings) else ", ".join(map(str, ranks))


def settings(runs: Sequence[Run]) -> str:
    """Facts, settings and versions in one table, and the plan."""
    flat = [_flat(run) for run in runs]
    names = list(dict.fromkeys(name for each in flat for name in each))
    rows = [[name, *(_said(each.get(name)) for each in flat)] for name in names]
    differs = [number for number, row in enumerate(rows) if len(set(row[1:])) > 1]
    said = ""
    if len(runs) > 1:
        many = len(differs)
        said = f"<p>{many} of {len(rows)} differ; they come first.</p>" if many else "<p>None of them differs.</p>"
        rows = [rows[number] for number in differs] + [row for number, row in enumerate(rows) if number not in differs]
        differs = list(range(many))
    heads = ["setting", *(run.name if len(runs) > 1 else "value" for run in runs)]
    found = [f'<div class="card"><h3>Settings and versions</h3>{said}{table(heads, rows, differs)}</div>']
    for run in runs:
        if run.facts.get("plan"):
            title = "Plan" + (f" of {run.name}" if len(runs) > 1 else "")
            box = f'<pre tabindex="0" role="region" aria-label="{text(title)}">{text(run.facts["plan"])}</pre>'
            found.append(f'<div class="card"><h3>{text(title)}</h3>{box}</div>')
    return "".join(found)


def _flat(run: Run) -> dict[str, Any]:
    """Every fact, setting and version by a dotted name."""
    found = {name: value for name, value in run.facts.items() if name not in APART} | {"ranks": run.ranks}
    for group, values in (run.facts.get("settings") or {}).items():
        found |= {f"{group}.{name}": value for name, value in values.items()}
    return found | {f"version of {name}": value for name, value in (run.facts.get("versions") or {}).items()}


def _said(value: Any) -> str:
    return "-" if value is None else str(value)
