"""The table and the plot of the lines of `run.py`: every contender at the best of its own sweep.

    python -m benchmarks.peers.table benchmarks/peers/results/peers_byte_lm.jsonl --plot docs/peers.png

The best rate is that of the least mean final loss over seeds, of rates that all of its seeds have; "edge" is said where
it is the first or last that was tried. Targets are the mean final losses of AdamW and of torch's Muon at their best. A
step's median is over AdamW's of the same round, its middle over rounds; p99 and largest are medians of the best rate's
runs, with whatever else the machine did.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import matplotlib
from rich.table import Table

from benchmarks.peers.run import read
from benchmarks.shared.table import headed, show
from benchmarks.training.table import Cell, finite, speed, spread

ADAMW = "adamw"
MUONS = ("torch_muon", "torch_muon_adamw")
#: Lines of the plot by package; all others are dotted.
STYLES = {"torch": "--", "lightning_so": "-"}


@dataclass(frozen=True)
class Sweep:
    """A contender's runs by rate."""

    name: str
    rates: Sequence[Cell]

    @property
    def full(self) -> list[Cell]:
        """Rates that have all the seeds that any has."""
        most = max(len(cell.runs) for cell in self.rates)
        return [cell for cell in self.rates if len(cell.runs) == most]

    @property
    def best(self) -> Cell:
        """That of the least mean final loss."""
        return min(self.full, key=lambda cell: cell.loss)

    @property
    def edge(self) -> bool:
        """Whether a rate beyond might be better still."""
        tried = [cell.lr for cell in self.rates]
        return self.best.lr in (min(tried), max(tried))

    def of_best(self, name: str) -> float | None:
        """The median of a figure over the best rate's runs."""
        found = [run[name] for run in self.best.runs if run.get(name) is not None]
        return median(found) if found else None

    @property
    def over_adamw(self) -> float | None:
        """The median step over AdamW's of its own round: the middle over all rounds."""
        runs = [run for cell in self.rates for run in cell.runs]
        found = [run["median_ms"] / run["adamw_ms"] for run in runs if run.get("adamw_ms") and run.get("median_ms")]
        return median(found) if found else None


def sweeps(lines: Iterable[dict[str, Any]]) -> dict[str, Sweep]:
    """Sweeps by contender, in the order of the file. A run that failed has no curve, and ends at no loss."""
    grouped: dict[str, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        whole = {"curve": {"steps": [], "seconds": [], "losses": []}, **line}
        grouped[line["contender"]][line["rate"]].append(whole)
    return {
        name: Sweep(name, [Cell(name, rate, rates[rate]) for rate in sorted(rates)]) for name, rates in grouped.items()
    }


def targets(found: dict[str, Sweep]) -> dict[str, float]:
    """AdamW's loss and torch Muon's, the better of its two scalings; those that were run."""
    losses = {"AdamW": [found[ADAMW].best.loss] if ADAMW in found else []}
    losses["torch Muon"] = [found[name].best.loss for name in MUONS if name in found]
    return {name: min(ones) for name, ones in losses.items() if ones}


def table(found: dict[str, Sweep], title: str, loss_name: str) -> Table:
    """A row a contender."""
    goals = targets(found)
    heads = ["contender", "package", "rates", "best", "seeds", loss_name]
    heads += [f"{what} to {name}'s" for name in goals for what in ("steps", "CPU s")]
    heads += ["median x AdamW", "ms: median", "p99", "largest", "state"]
    caption = "; ".join(f"{name}'s: {loss:.4g}" for name, loss in goals.items())
    out = headed(heads, title, f"{caption}; state is bytes per parameter byte", left=2)
    for sweep in found.values():
        best = sweep.best
        run = best.runs[-1]
        reached = [
            speed(best.reached(places, goal), 1.0)[0] for goal in goals.values() for places in ("steps", "seconds")
        ]
        out.add_row(
            sweep.name,
            f"{run['package']} {run['version']}",
            str(len(sweep.rates)),
            f"{best.lr:g}" + (" (edge)" if sweep.edge else ""),
            str(len(best.runs)),
            spread(best.finals),
            *reached,
            number(sweep.over_adamw, ".2f"),
            *(number(sweep.of_best(name), ".1f") for name in ("median_ms", "p99_ms", "largest_ms")),
            number(sweep.of_best("state"), ".2f"),
        )
    return out


def number(value: float | None, form: str) -> str:
    """A figure, or a dash."""
    return "-" if value is None else format(value, form)


def draw(
    groups: dict[str, dict[str, Sweep]], names: dict[str, str], out: Path, called: Mapping[str, str] | None = None
) -> None:
    """Mean loss over seeds of every contender's best rate, over steps and over mean seconds: a row a problem.

    Args:
        groups: Sweeps by title.
        names: What the loss is called, by title.
        out: The picture.
        called: What contenders are called, where it is not by their names.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogFormatter

    colors = [matplotlib.colormaps["tab20"](at) for at in range(20)]
    figure, axes = plt.subplots(len(groups), 2, figsize=(13, 4.5 * len(groups)), layout="constrained", squeeze=False)
    for row, (title, found) in zip(axes, groups.items(), strict=True):
        for place, sweep in enumerate(found.values()):
            curves = [run["curve"] for run in sweep.best.runs if run["curve"]["steps"]]
            if not curves:
                continue
            points = min(len(curve["steps"]) for curve in curves)
            losses = [mean(finite(curve["losses"][i]) for curve in curves) for i in range(points)]
            for axis, places in zip(row, ("steps", "seconds"), strict=True):
                at = [mean(curve[places][i] for curve in curves) for i in range(points)]
                style = STYLES.get(sweep.best.runs[-1]["package"], ":")
                label = f"{(called or {}).get(sweep.name, sweep.name)}, {sweep.best.lr:g}"
                axis.plot(at, losses, style, color=colors[2 * place % 20 + place // 10], label=label)
        row[0].set(title=title, xlabel="step", ylabel=names[title], yscale="log")
        row[1].set(title=title, xlabel="CPU seconds of one core", yscale="log")
        for axis in row:  # 2, 3, 4 rather than powers of ten
            axis.yaxis.set_major_formatter(LogFormatter())
            axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        row[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(out, dpi=90)
    print(f"plot: {out}")


def main() -> None:
    """Read the files, print a table a problem and what failed, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--plot", type=Path, help="a PNG of the curves")
    args = parser.parse_args()
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in args.files:
        for line in read(path).values():
            lines[f"{line['problem']}, {line['steps']} steps"].append(line)
    groups = {title: sweeps(ones) for title, ones in lines.items()}
    names = {title: ones[0]["loss_name"] for title, ones in lines.items()}
    show(*(table(found, title, names[title]) for title, found in groups.items()), width=240)
    for title, ones in lines.items():
        for line in ones:
            if "failed" in line:
                print(f"{title}: {line['contender']} rate {line['rate']:g} seed {line['seed']}: {line['failed']}")
    if args.plot is not None:
        draw(groups, names, args.plot)


if __name__ == "__main__":
    main()
