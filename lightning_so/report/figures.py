"""The main figures of a run, alone and beside another's."""

from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median

from lightning_so.report.charts.loss import ends, seconds
from lightning_so.report.html import table, text
from lightning_so.report.run import Number, Run
from lightning_so.report.verdict.finding import figure


def chips(run: Run, named: bool = False) -> list[str]:
    """The run in short.

    Args:
        run: The run.
        named: Whether its name is said first.

    Returns:
        Texts.
    """
    facts, begun = run.facts, run.first["begun"].get("time")
    method = (
        f"{facts.get('method')} on {facts.get('optimizer')}" if facts.get("method") else str(facts.get("optimizer"))
    )
    when = f"{datetime.fromtimestamp(begun, UTC):%Y-%m-%d %H:%M} UTC" if begun else ""
    parameters = f"{figure(facts['parameters'])} parameters" if facts.get("parameters") else ""
    ranks = f"{run.ranks} ranks" if run.ranks > 1 else "1 rank"
    found = [method, facts.get("strategy"), ranks, facts.get("precision"), facts.get("device"), parameters, when]
    return [f"{run.name}: {each}" if named and number == 0 else str(each) for number, each in enumerate(found) if each]


def numbers(run: Run) -> dict[str, str]:
    """The main figures, by what they are."""
    first, last, least = ends(run)
    wall, step = seconds(run), _median(run, "step_seconds")
    overhead = _median(run, "overhead_measured") or _median(run, "overhead")
    held = max((sum(each["memory"].values()) for each in run.recordings if each.get("memory")), default=None)
    return {
        "loss at the end": figure(last),
        "loss at first": figure(first),
        "least loss": figure(least),
        "steps": f"{run.length:,}",
        "wall time": _time(wall),
        "median step": f"{figure(1e3 * step)} ms" if step else "-",
        "second order": f"{overhead:.0%}" if overhead is not None and run.facts.get("method") else "-",
        "memory a rank": f"{figure(held / 2**20)} MiB" if held else "-",
    }


def tiles(run: Run) -> str:
    """The main figures of a run; those that are not known are left out."""
    known = {name: value for name, value in numbers(run).items() if value != "-"}
    known.pop("least loss", None)
    first = known.pop("loss at first", None)
    more = {"loss at the end": f" <small>from {text(first)}</small>"} if first else {}
    cells = (f"<div><dt>{text(name)}</dt><dd>{text(is_)}{more.get(name, '')}</dd></div>" for name, is_ in known.items())
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def beside(runs: Sequence[Run]) -> str:
    """The main figures of runs as a table."""
    found = [numbers(run) for run in runs]
    rows = [[name, *(each[name] for each in found)] for name in found[0] if any(each[name] != "-" for each in found)]
    return f'<div class="card">{table(["", *(run.name for run in runs)], rows)}</div>'


def _median(run: Run, name: str) -> Number:
    known = run.known(name)[1]
    return median(known) if known else None


def _time(seconds_: Number) -> str:
    if seconds_ is None:
        return "-"
    minutes, rest = divmod(round(seconds_), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds_:.3g} s"
