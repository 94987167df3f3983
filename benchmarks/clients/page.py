"""The page docs/tested-with.md, from the lines of `benchmarks.clients.train`."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[2]
OUT = ROOT / "benchmarks" / "clients" / "results" / "clients.jsonl"
PAGE = ROOT / "docs" / "tested-with.md"
#: Columns; the first is without.
METHODS = {"": "without", "SOAP": "SOAP", "KFAC": "K-FAC", "EKFAC": "EKFAC", "Muon": "Muon", "Shampoo": "Shampoo"}
COLUMNS = ["package", "version", "what was trained", "optimizer", "first loss", *METHODS.values(), "covered", "failed"]
#: Tests that train with a package every time that they run.
TESTS = {
    "pina-mathlab": "tests/together/test_pina.py",
    "transformers": "tests/layers/test_layers.py",
    "torchmetrics": "tests/probe/test_side_effects.py",
}

HEAD = """# Tested with

This page lists packages that are built on Lightning, or whose models go into it, and their loss with `SecondOrder`.

Written by `make clients`, not by hand, from [its lines](../benchmarks/clients/results/clients.jsonl). torch {torch},
lightning {lightning}, torchmetrics {torchmetrics}, one core.

Every training is the package's own way: its modules, its data loaders, its optimizer, its Trainer where it has one.
What is added is `callbacks=[SecondOrder(SOAP())]`, or another method in its place. No rate was chosen for it: both
sides have the same rate, the same random numbers and {steps} steps. The losses are means over the last ten steps and
{seeds} seeds. They say that it works there, not how much it helps: for that both sides need rates of
their own ([benchmarks](../benchmarks/README.md)).

A run counts if every step was made by the method: none was skipped or undone. Failed are solves that failed, of all;
their blocks stay on the optimizer's own step. Those of `TemporalFusionTransformer` are of four matrices whose gradient
is zero: the series have no static variables. Covered is the share of the parameters that the method works on. Both are
of SOAP and K-FAC.

"""


def read() -> list[dict[str, Any]]:
    """The lines."""
    return [json.loads(line) for line in OUT.read_text().splitlines()]


def rendered(lines: list[dict[str, Any]]) -> str:
    """The page."""
    first = lines[0]
    seeds = {line["seed"] for line in lines}
    page = HEAD.format(**{key: first[key] for key in ("torch", "lightning", "torchmetrics", "steps")}, seeds=len(seeds))
    page += f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    for client in sorted({line["client"] for line in lines}):
        mine = [line for line in lines if line["client"] == client]
        of = {method: [line for line in mine if line["method"] == method] for method in METHODS}
        last = [_last(found) for found in of.values()]
        covered = " / ".join(f"{of[method][0].get('coverage', 0):.0%}" for method in ("SOAP", "KFAC"))
        failed = " / ".join(_failed(of[method]) for method in ("SOAP", "KFAC"))
        begun = f"{mean(line['first'] for line in of['']):.4g}"
        cells = [client, mine[0]["version"], mine[0]["what"], mine[0]["base"], begun, *last, covered, failed]
        page += f"| {' | '.join(cells)} |\n"
    page += "\nTests train with some of them each time that they run:\n\n"
    page += "".join(f"- {name}: [`{path}`](../{path})\n" for name, path in sorted(TESTS.items()))
    return page


def _last(lines: list[dict[str, Any]]) -> str:
    refused = next((line["refused"] for line in lines if "refused" in line), None)
    return f"refused: {refused}" if refused else f"{mean(line['last'] for line in lines):.4g}"


def _failed(lines: list[dict[str, Any]]) -> str:
    solves, failures = (sum(line.get(name, 0) for line in lines) for name in ("solves", "failures"))
    return f"{failures} of {solves}" if failures else "none"


def write() -> None:
    """Write it."""
    PAGE.write_text(rendered(read()))
    print(f"page: {PAGE}")


if __name__ == "__main__":
    write()
