"""Whether K-FAC's default damping needs tuning: its final loss against the best of a sweep around it.

    python -m benchmarks.training.damping --problems autoencoder cnn byte_lm regression --batches 32 128 512 --jobs 2

Every cell is a problem, a base optimizer, a batch size and a reduction of the loss; in each the default runs beside
multiples of it at the same learning rate. SGD's rate of a summed loss is divided by the number of its terms.
"""

import argparse
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.shared.methods import Settings
from benchmarks.shared.problems import PROBLEMS, load
from benchmarks.training.grid import Run, train
from lightning_so.methods.kfac import BENT, PRECONDITIONED

#: The defaults that are tried, and what multiplies them.
DEFAULTS = {"kfac": BENT, "kfac_sgd": PRECONDITIONED}
TIMES = [0.1, 0.3, 1.0, 3.0, 10.0]
#: Learning rates of each base: those of the other benchmarks, the same at every batch size.
RATES = {
    ("autoencoder", "kfac"): 1e-2,
    ("cnn", "kfac"): 5e-3,
    ("cnn_fashion", "kfac"): 5e-3,
    ("byte_lm", "kfac"): 5e-3,
    ("regression", "kfac"): 5e-3,
}
SGD_RATE = 0.1
#: Steps where the problem's own would take too long.
STEPS = {"byte_lm": 100}


def damped(method: str, times: float) -> Any:
    """The default times a number; None is the default itself, untouched."""
    default = DEFAULTS[method]
    if times == 1.0:
        return None
    return type(default)(times * default.times)


def runs(args: argparse.Namespace) -> list[tuple[dict[str, Any], Run]]:
    """Every cell at every damping."""
    found = []
    for problem, method, batch, reduction, times, seed in product(
        args.problems, DEFAULTS, args.batches, args.reductions, TIMES, args.seeds
    ):
        steps = STEPS.get(problem) or load(problem).steps
        lr = RATES.get((problem, method), SGD_RATE)
        if reduction == "sum" and method == "kfac_sgd":
            terms = load(problem, batch_size=batch).batch(torch.Generator())[1].numel()
            lr /= terms
        options = (("damping", damped(method, times)),)
        settings = Settings(lr, steps=steps, options=options)
        found.append(({"times": times}, Run(problem, method, seed, steps, settings, batch, reduction)))
    return found


def table(lines: Iterable[dict[str, Any]]) -> Table:
    """A row a cell: the losses over the sweep, and the default's over the best."""
    cells: dict[tuple, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        loss = math.inf if line["final_loss"] is None else line["final_loss"]
        key = (line["problem"], line["method"], line["batch"], line["reduction"])
        cells[key][line["times"]].append(loss)
    found = Table(title="final loss at multiples of the default damping")
    for head in ["problem", "method", "batch", "loss", *(f"x{times:g}" for times in TIMES), "default / best"]:
        found.add_column(head, justify="left" if head in ("problem", "method", "loss") else "right")
    for key, row in sorted(cells.items()):
        means = {times: sum(losses) / len(losses) for times, losses in row.items()}
        best = min(means.values())
        found.add_row(
            *map(str, key),
            *(f"{means[times]:.4g}" if times in means else "" for times in TIMES),
            f"{means.get(1.0, math.nan) / best:.3f}",
        )
    return found


def main() -> None:
    """Do the runs, write a line each, print the table of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--problems", nargs="+", choices=list(PROBLEMS), default=["autoencoder", "cnn", "byte_lm", "regression"])
    add("--batches", type=int, nargs="+", default=[32, 128, 512])
    add("--reductions", nargs="+", choices=["mean", "sum"], default=["mean"])
    add("--seeds", type=int, nargs="+", default=[0])
    add("--jobs", type=int, default=1, help="runs at a time, one thread each")
    add("--out", type=Path, default=Path("benchmarks/training/results/damping.jsonl"))
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool, args.out.open("a") as file:
        pending = {pool.submit(train, run): extra for extra, run in runs(args)}
        for future in as_completed(pending):
            line = {**future.result(), **pending[future]}
            line["options"] = {name: str(value) for name, value in line["options"].items()}
            print(json.dumps(line), file=file, flush=True)
    Console(width=140).print(table(json.loads(text) for text in args.out.read_text().splitlines()))


if __name__ == "__main__":
    main()
