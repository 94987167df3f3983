"""Tables of the lines of `grid.py`: `python -m benchmarks.training.table benchmarks/training/results/grid_*.jsonl`.

One table a problem and number of steps. A method appears once for every setting (betas, options, AdamW part) that was
run, with a row a learning rate; the target is the mean final loss of AdamW at its best setting and learning rate.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from benchmarks.shared.table import headed, show
from examples.crossing import crossing

DEFAULT_BETAS = [0.9, 0.95]


@dataclass(frozen=True)
class Cell:
    """The runs of one setting at one learning rate, one a seed."""

    label: str
    lr: float
    runs: Sequence[dict[str, Any]]

    @property
    def finals(self) -> list[float]:
        """Final losses, infinite where a run did not stay finite."""
        return [finite(run["final_loss"]) for run in self.runs]

    @property
    def loss(self) -> float:
        """Mean final loss."""
        return mean(self.finals)

    def reached(self, places: str, target: float) -> list[float | None]:
        """Where each run first has the target loss; `places` is "steps" or "seconds"."""
        curves = [run["curve"] for run in self.runs]
        return [crossing(curve[places], [finite(loss) for loss in curve["losses"]], target) for curve in curves]


def finite(loss: float | None) -> float:
    """A loss as written by `benchmarks.training.grid`, whose null is a loss that was not finite."""
    return math.inf if loss is None else loss


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """All lines; of two with the same setting and seed the later one counts."""
    runs = {}
    for path in paths:
        for text in path.read_text().splitlines():
            run = json.loads(text)
            runs[run["problem"], run["steps"], label(run), run["lr"], run["seed"]] = run
    return list(runs.values())


def label(run: dict[str, Any]) -> str:
    """The method and whatever of its setting is not the default."""
    extras = [f"{name}={value}" for name, value in run["options"].items()]
    if run["betas"] != DEFAULT_BETAS:
        extras.append(f"betas={tuple(run['betas'])}")
    if run["adam_lr"] is not None:
        extras.append(f"adam_lr={run['adam_lr']:g}")
    return " ".join([run["method"], *extras])


def cells(runs: list[dict[str, Any]]) -> list[Cell]:
    """Runs grouped by setting and learning rate, in that order."""
    grouped = defaultdict(list)
    for run in runs:
        grouped[label(run), run["lr"]].append(run)
    return [Cell(name, lr, grouped[name, lr]) for name, lr in sorted(grouped)]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not all(map(math.isfinite, values)):
        return "diverged"
    return f"{mean(values):.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def speed(places: list[float | None], total: float | None) -> tuple[str, str]:
    """The mean place at which the target is reached and AdamW's total over it; blank unless every seed got there."""
    if total is None:
        return "", ""
    got = [place for place in places if place is not None]
    if len(got) < len(places):
        return f"{len(got)} of {len(places)} runs", ""
    return f"{mean(got):.3g}", f"{total / max(mean(got), 1e-9):.2f}x"


def build(title: str, rows: list[Cell], loss_name: str) -> Table:
    """The table of one problem."""
    best = {name: min((c for c in rows if c.label == name), key=lambda c: c.loss) for name in {c.label for c in rows}}
    tuned = min((c for c in best.values() if c.label.startswith("adamw")), key=lambda c: c.loss, default=None)
    target = math.nan if tuned is None else tuned.loss
    steps = None if tuned is None else tuned.runs[0]["steps"]
    seconds = None if tuned is None else mean(run["cpu_seconds"] for run in tuned.runs)

    caption = "no AdamW runs: no target" if tuned is None else f"target {target:.4g}: AdamW at lr {tuned.lr:g}"
    heads = [
        "method",
        "lr",
        "seeds",
        loss_name,
        "ms a step",
        "steps to target",
        "x steps",
        "CPU s to target",
        "x CPU s",
    ]
    caption += "; bold: a setting's best learning rate; x: AdamW's whole run over the method's"
    table = headed(heads, title, caption)
    for i, cell in enumerate(rows):
        last = i + 1 == len(rows) or rows[i + 1].label != cell.label
        table.add_row(
            cell.label,
            f"{cell.lr:g}",
            str(len(cell.runs)),
            spread(cell.finals),
            f"{1e3 * mean(run['cpu_seconds'] / run['curve']['steps'][-1] for run in cell.runs):.1f}",
            *speed(cell.reached("steps", target), steps),
            *speed(cell.reached("seconds", target), seconds),
            style="bold" if best[cell.label] is cell else None,
            end_section=last,
        )
    return table


def main() -> None:
    """Read the files and print a table a problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    groups = defaultdict(list)
    for run in read(parser.parse_args().files):
        groups[run["problem"], run["steps"]].append(run)
    for (problem, steps), runs in sorted(groups.items()):
        show(build(f"{problem}, {steps} steps", cells(runs), runs[0]["loss_name"]))


if __name__ == "__main__":
    main()
