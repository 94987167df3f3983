"""Loss against steps and seconds over a grid of learning rates and seeds, one JSON line a run.

    python -m benchmarks.training.grid --problem byte_lm --method soap --lrs 1e-3 2e-3 4e-3 8e-3 --seeds 0 1 2 --jobs 2

A run is one process with one thread. Seconds are process CPU seconds of training steps (forward, backward, optimizer,
schedule): validation and the drawing of batches are left out. `python -m benchmarks.training.table` reads them.
"""

import argparse
import json
import math
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared.loop import Point, stage_seconds, trained
from benchmarks.shared.methods import METHODS, Settings, build, option
from benchmarks.shared.problems import PROBLEMS, load


@dataclass(frozen=True)
class Run:
    """One cell of the grid."""

    problem: str
    method: str
    seed: int
    every: int
    settings: Settings
    batch: int | None = None
    reduction: str = "mean"


def train(run: Run) -> dict[str, Any]:
    """Do one run and give its JSON line; a loss that is not finite ends it early."""
    torch.set_num_threads(1)
    problem = load(run.problem, batch_size=run.batch)
    model = problem.model(run.seed)
    contender = build(run.method, model, run.settings)
    curve = trained(problem, model, contender, run.seed, run.settings.steps, run.every, run.reduction)
    return line(run, problem.loss_name, curve, contender)


def line(run: Run, loss_name: str, curve: list[Point], contender: Any) -> dict[str, Any]:
    """The JSON line of a run; losses that are not finite become null."""
    steps, seconds, losses = zip(*curve, strict=True)
    finite = [round(loss, 5) if math.isfinite(loss) else None for loss in losses]
    return {
        "problem": run.problem,
        "method": run.method,
        "lr": run.settings.lr,
        "seed": run.seed,
        "steps": run.settings.steps,
        "batch": run.batch,
        "reduction": run.reduction,
        "betas": run.settings.betas,
        "adam_lr": run.settings.adam_lr if run.method.startswith("torch_muon") else None,
        "options": dict(run.settings.options),
        "loss_name": loss_name,
        "final_loss": finite[-1],
        "cpu_seconds": round(seconds[-1], 3),
        "curve": {"steps": steps, "seconds": [round(s, 3) for s in seconds], "losses": finite},
        "counters": contender.counters(),
        "stage_seconds": {k: round(v, 3) for k, v in stage_seconds(contender.engine).items()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--problem", choices=list(PROBLEMS), default="byte_lm")
    add("--method", choices=list(METHODS), nargs="+", default=["adamw"])
    add("--lrs", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2])
    add("--seeds", type=int, nargs="+", default=[0])
    add("--steps", type=int, help="default: the problem's own")
    add("--betas", type=float, nargs=2, default=[0.9, 0.95])
    add("--adam-lr", type=float, default=1e-2, help="the AdamW part beside torch's Muon")
    add("--set", type=option, nargs="+", default=[], metavar="NAME=VALUE", help="constructor arguments of the method")
    add("--every", type=int, help="steps between validations (default: twenty points)")
    add("--jobs", type=int, default=1, help="runs at a time, one thread each")
    add("--out", type=Path, help="default: benchmarks/training/results/grid_PROBLEM.jsonl; lines are appended")
    return parser.parse_args()


def grid(args: argparse.Namespace) -> list[Run]:
    """Every method at every learning rate and seed."""
    steps = args.steps or load(args.problem).steps
    every = args.every or max(1, steps // 20)
    return [
        Run(args.problem, method, seed, every, Settings(lr, tuple(args.betas), args.adam_lr, steps, tuple(args.set)))
        for method, lr, seed in product(args.method, args.lrs, args.seeds)
    ]


def main() -> None:
    """Do the grid; a line is written as soon as its run ends."""
    args = arguments()
    out = args.out or Path(f"benchmarks/training/results/grid_{args.problem}.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Read by the OpenMP runtime when a worker starts: set_num_threads alone would come after the pool of threads.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool, out.open("a") as file:
        for future in as_completed([pool.submit(train, run) for run in grid(args)]):
            result = future.result()
            print(json.dumps(result), file=file, flush=True)
            print(
                f"{result['method']:<10} lr {result['lr']:<8g} seed {result['seed']}"
                f"  {result['loss_name']} {result['final_loss']}  {result['cpu_seconds']:.1f} s",
                flush=True,
            )
    print(f"results: {out}")


if __name__ == "__main__":
    main()
