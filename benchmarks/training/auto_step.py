"""AutoStep against learning rates that are chosen: final losses from rates over four orders of magnitude.

    python -m benchmarks.training.auto_step

AdamW, and SGD with momentum, at a constant rate, alone and behind AutoStep and its ablation.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.shared.problems import load
from lightning_so import AutoStep, attach

OUT = Path("benchmarks/training/results/auto_step.jsonl")
BASES: dict[str, Any] = {
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr=lr, weight_decay=0.01),
    "sgd": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
}
METHODS = {"alone": None, "AutoStep": AutoStep(), "constant": AutoStep(curvature="constant")}
RATES = {"adamw": (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 1e-1), "sgd": (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 1.0)}


def run(name: str, base: str, rate: float, method: str, seed: int, steps: int) -> dict[str, Any]:
    """One training."""
    torch.set_num_threads(1)
    problem = load(name)
    model = problem.model(seed)
    optimizer = BASES[base](model.parameters(), rate)
    engine = None if METHODS[method] is None else attach(model, optimizer, METHODS[method])
    generator = torch.Generator().manual_seed(seed)
    evaluations, begun = 0, time.process_time()
    for _ in range(steps):
        batch = problem.batch(generator)

        def closure(batch: Any = batch) -> Tensor:
            nonlocal evaluations
            evaluations += 1
            model.zero_grad()
            loss = problem.loss(model, batch, "mean")
            loss.backward()
            return loss

        optimizer.step(closure)
    seconds = time.process_time() - begun
    loss = problem.validation(model)
    factor = None if engine is None else engine.scalars()["curv/step_factor"]
    return {
        "problem": name,
        "base": base,
        "rate": rate,
        "method": method,
        "seed": seed,
        "steps": steps,
        "loss": round(loss, 4) if math.isfinite(loss) else None,
        "factor": factor,
        "evaluations": evaluations,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    """Run all, and print a table a problem and base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=["cnn", "autoencoder", "byte_lm"])
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=list(BASES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    with OUT.open("a") as file:
        for name in args.problems:
            for base in args.bases:
                table = Table(f"{name}, {base}", *(f"{rate:g}" for rate in RATES[base]))
                for method in METHODS:
                    cells = []
                    for rate in RATES[base]:
                        lines = [run(name, base, rate, method, seed, args.steps) for seed in args.seeds]
                        for line in lines:
                            print(json.dumps(line), file=file, flush=True)
                        cells.append(", ".join("-" if x["loss"] is None else f"{x['loss']:.3g}" for x in lines))
                    table.add_row(method, *cells)
                Console(width=120).print(table)


if __name__ == "__main__":
    main()
