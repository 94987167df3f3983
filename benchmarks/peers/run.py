"""What a user can install, side by side with ours: equal sweeps of rates, seeds, curves, step times and memory.

    make bench-peers                # the packages, once
    python -m benchmarks.peers.run --problem byte_lm
    python -m benchmarks.peers.run --with mine.optimizers:make@1e-2
    python -m benchmarks.peers.table benchmarks/peers/results/peers_PROBLEM.jsonl

A round is a seed and a place of the sweep: all contenders train interleaved step by step, each at its own rate, the
middle of its sweep times that place. A JSON line a contender and round, with the package's name and version. What the
file has is not run again, so that what was broken off goes on; AdamW is in every round, as the measure of time. A
package that is not installed is skipped by name. A contender of one's own is a function of named parameters and a rate.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.peers.contenders import ENTRIES, Entry, dotted, present
from benchmarks.peers.round import trained
from benchmarks.shared import lines
from benchmarks.shared.problems import PROBLEMS, load
from benchmarks.shared.table import machine

TIMES = [1.0, 0.3, 3.0, 0.1, 10.0]


class Cell(NamedTuple):
    """What tells a line from all others; `times` is the rate over the middle of the sweep."""

    problem: str
    contender: str
    rate: float
    times: float
    seed: int
    steps: int


def read(path: Path) -> dict[Cell, dict[str, Any]]:
    """The lines of a file by their runs."""
    return lines.read(path, Cell)


def cell(problem: str, entry: Entry, times: float, seed: int, steps: int) -> Cell:
    """The line of a contender in a round."""
    return Cell(problem, entry.name, float(f"{entry.rate * times:.3g}"), times, seed, steps)


def played(cells: Sequence[Cell], entries: dict[str, Entry], out: Path) -> None:
    """One round, AdamW first; its lines are appended when it ends. What failed says so."""
    first = cells[0]
    problem = load(first.problem)
    figures = trained(problem, [(entries[one.contender], one.rate) for one in cells], first.seed, first.steps)
    clock = figures[0].get("median_ms")
    with out.open("a") as file:
        for one, line in zip(cells, figures, strict=True):
            package = entries[one.contender].package
            facts = {**one._asdict(), **package, "loss_name": problem.loss_name, "adamw_ms": clock}
            print(json.dumps({**facts, **line, **machine("cpu")}), file=file)
            said = line.get("failed") or f"{problem.loss_name} {line['final_loss']}  {line['cpu_seconds']:.1f} s"
            print(f"{one.contender:<30} rate {one.rate:<8.3g} seed {one.seed}  {said}", flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--problem", choices=list(PROBLEMS), default="byte_lm")
    add("--contenders", choices=list(ENTRIES), nargs="+", default=list(ENTRIES))
    add("--with", dest="others", type=dotted, nargs="+", default=[], metavar="MODULE:FUNCTION[@RATE]")
    add("--times", type=float, nargs="+", default=TIMES, help="places of the sweep, over its middle")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--steps", type=int, help="default: the problem's own")
    add("--out", type=Path, help="default: benchmarks/peers/results/peers_PROBLEM.jsonl; lines are appended")
    return parser.parse_args()


def main() -> None:
    """Do the rounds that the file does not have whole."""
    args = arguments()
    torch.set_num_threads(1)
    found = present([*(ENTRIES[name] for name in args.contenders), *args.others])
    if not found:
        sys.exit("nothing is left to compare")
    entries = {entry.name: entry for entry in (ENTRIES["adamw"], *found)}
    steps = args.steps or load(args.problem).steps
    out = args.out or Path(f"benchmarks/peers/results/peers_{args.problem}.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    have = lines.done(out, Cell)
    rounds = [
        [cell(args.problem, entry, times, seed, steps) for entry in entries.values()]
        for seed, times in product(args.seeds, args.times)
    ]
    todo = [[one for one in cells if one not in have] for cells in rounds]
    print(
        f"{sum(map(len, rounds)) - sum(map(len, todo))} runs are in {out}, {sum(map(len, todo))} are left", flush=True
    )
    for cells, left in zip(rounds, todo, strict=True):
        if left:
            played(left if cells[0] in left else [cells[0], *left], entries, out)
    print(f"results: {out}")


if __name__ == "__main__":
    main()
