"""Every method on every problem of the suite with nothing set, at its base's own rate, at .3 of it and at 3 times it.

    python -m benchmarks.anywhere.run --jobs 2
    python -m benchmarks.anywhere.table benchmarks/anywhere/results/anywhere.jsonl

A JSON line a run. Runs that the file has are skipped, so that what was broken off goes on. AdamW and SGD are run for
more steps too, at their own rate: what they reach in the seconds of a method that takes longer.
"""

import argparse
import json
from itertools import product
from pathlib import Path

from benchmarks.anywhere.cell import Cell, left, runs
from benchmarks.anywhere.problems import PROBLEMS, TUNED, base, tuned
from benchmarks.shared.methods import METHODS

OUT = Path("benchmarks/anywhere/results/anywhere.jsonl")
COMPARED = ["adamw", "sgd", "torch_muon_adamw", "soap", "muon", "kfac", "ekfac", "shampoo", "kfac_sgd", "ekfac_sgd"]
TIMES = [1.0, 0.3, 3.0]
LONGER = [1.5, 2.0, 3.0]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--problems", choices=list(PROBLEMS), nargs="+", default=list(PROBLEMS))
    add("--methods", choices=list(METHODS), nargs="+", default=COMPARED)
    add("--rates", type=float, nargs="+", default=TIMES, help="over the base's tuned rate")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--longer", type=float, nargs="*", default=LONGER, help="steps of AdamW and SGD over the problem's own")
    add("--jobs", type=int, default=1, help="runs at a time, one thread each")
    add("--rates-of", type=Path, default=TUNED, help="the tuned rates")
    add("--out", type=Path, default=OUT, help="lines are appended")
    return parser.parse_args()


def cells(args: argparse.Namespace) -> list[Cell]:
    """All runs, the tuned rate of the first seed before all else."""
    found = []
    for seed, times, problem, method in product(args.seeds, args.rates, args.problems, args.methods):
        own = tuned(problem, method, args.rates_of)
        stretches = [1.0, *args.longer] if times == 1 and base(method) == method else [1.0]
        found += [Cell(problem, method, float(f"{own * times:.3g}"), seed, times, stretch) for stretch in stretches]
    return found


def main() -> None:
    """Do the runs; a line is written as soon as its run ends."""
    args = arguments()
    every = cells(args)
    todo = left(every, args.out)
    print(f"{len(every) - len(todo)} runs are in {args.out}, {len(todo)} are left", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        for line in runs(todo, args.jobs):
            print(json.dumps(line), file=file, flush=True)
    print(f"results: {args.out}")


if __name__ == "__main__":
    main()
