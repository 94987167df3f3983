"""What share of the suite a method holds, and its ratios; `shares.py` says what they are.

python -m benchmarks.anywhere.table benchmarks/anywhere/results/anywhere.jsonl
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from rich.table import Table

from benchmarks.anywhere.cell import read
from benchmarks.anywhere.shares import Runs, against, allowed, grouped, losses, ratio, share, summary
from benchmarks.shared.table import headed, show


def shares(runs: Runs) -> Table:
    """A row a method."""
    heads = ["method", "base", "cells", "equal at its rate", "equal to it tuned", "median", "worst", "where"]
    heads += ["equal in its seconds", "median", "worst", "where"]
    table = headed(heads, "Final loss over the base's: share of cells at most equal, median, worst", left=2)
    for method in runs.methods:
        found = summary(runs, method)
        if against(method) == method or not found.same:
            continue
        parts = [method, against(method), str(len(found.same))]
        parts += [percent(share(runs, method, part)) for part in (found.same, found.tuned)]
        table.add_row(
            *parts,
            *ends(found.same),
            percent(share(runs, method, found.timed)),
            *ends(found.timed),
        )
    return table


def ends(ratios: Mapping[tuple[str, float], float]) -> tuple[str, str, str]:
    """Median, worst, and the cell of the worst."""
    if not ratios:
        return "-", "-", "-"
    (problem, times), worst = max(ratios.items(), key=lambda item: item[1])
    return f"{median(ratios.values()):.3f}", f"{worst:.3g}", f"{problem} x{times:g}"


def percent(part: float | None) -> str:
    """A share."""
    return "-" if part is None else f"{100 * part:.0f} %"


def ratios(runs: Runs, times: float) -> Table:
    """A row a problem, a column a method: final loss over the base's at a rate; what is not equal is bold."""
    compared = [method for method in runs.methods if against(method) != method]
    heads = ["problem", *(name for name in ("adamw", "sgd") if name in runs.methods), *compared]
    table = headed(heads, f"Rate x{times:g}: final loss of AdamW and SGD, of others over their base's")
    for problem in runs.problems:
        bases = [runs.at(problem, name, times) for name in ("adamw", "sgd") if name in runs.methods]
        row = [f"{median(losses(lines)):.4g}" if lines else "-" for lines in bases]
        for method in compared:
            one = ratio(runs, problem, method, times)
            text = "-" if one is None else f"{one:.3g}"
            row.append(text if one is None or one <= allowed(runs, problem, method) else f"[bold]{text}[/bold]")
        table.add_row(problem, *row)
    return table


def main() -> None:
    """Read a file, print the shares, the ratios at each rate, and what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    lines = read(parser.parse_args().file)
    runs = grouped(lines)
    show(shares(runs), *(ratios(runs, times) for times in runs.rates), width=180)
    for cell, line in lines.items():
        if said := line.get("failed") or line.get("refused"):
            print(f"{cell.problem} {cell.method} x{cell.times:g} seed {cell.seed}: {said}")


if __name__ == "__main__":
    main()
