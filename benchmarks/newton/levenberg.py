"""What K-FAC gains from curvature products: step size and momentum from a quadratic model, damping that adapts.

    MNIST_JSON=... python -m benchmarks.newton.levenberg

The deep autoencoder, constant learning rate 1 of SGD (it does not matter behind the model), three seeds. Every
evaluation of the gradient is counted; seconds are process CPU seconds of training steps.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.shared.problems import load
from lightning_so import KFAC, QuadraticModel, attach

OUT = Path("benchmarks/newton/results/levenberg.jsonl")
#: By name: K-FAC or None, the model or None, the learning rate.
VARIANTS: dict[str, tuple[Any, Any, float]] = {
    "quadratic model alone": (None, QuadraticModel(), 1.0),
    "K-FAC + model, l fixed at 1": (KFAC(), QuadraticModel(initial=1.0, adapt=0), 1.0),
    "K-FAC + model, l adapts, from 1": (KFAC(), QuadraticModel(initial=1.0), 1.0),
    "K-FAC + model, l adapts": (KFAC(), QuadraticModel(), 1.0),
    "K-FAC + model, constant curvature, from 1": (KFAC(), QuadraticModel(initial=1.0, curvature="constant"), 1.0),
}


def run(problem_name: str, variant: str, seed: int, steps: int) -> dict[str, Any]:
    """One training."""
    torch.set_num_threads(1)
    layers, model_of, rate = VARIANTS[variant]
    problem = load(problem_name)
    model = problem.model(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    inner = None if layers is None else attach(model, optimizer, layers)
    outer = None if model_of is None else attach(model, optimizer, model_of)
    generator = torch.Generator().manual_seed(seed)
    evaluations, seconds, curve = 0, 0.0, []
    for step in range(1, steps + 1):
        batch = problem.batch(generator)
        first = True

        def closure(batch: Any = batch) -> Tensor:
            nonlocal evaluations, first
            evaluations += 1
            model.zero_grad()
            loss = problem.loss(model, batch, "mean")
            if first and inner is not None:
                inner.before_backward(loss)
            first = False
            loss.backward()
            return loss

        begun = time.process_time()
        optimizer.step(closure)
        seconds += time.process_time() - begun
        if step % 20 == 0:
            curve.append((step, evaluations, round(seconds, 2), round(problem.validation(model), 3)))
    scalars = {} if outer is None else {k: round(v, 4) for k, v in outer.scalars().items()}
    return {"problem": problem_name, "variant": variant, "seed": seed, "curve": curve, "scalars": scalars}


def main() -> None:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="autoencoder_mnist")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args()
    table = Table("variant", "loss at the end, by seed", "evaluations", "seconds")
    with OUT.open("a") as file:
        for variant in args.variants:
            found = [run(args.problem, variant, seed, args.steps) for seed in args.seeds]
            for line in found:
                print(json.dumps(line), file=file, flush=True)
            ends = [line["curve"][-1] for line in found]
            losses = ", ".join(f"{end[3]:.2f}" for end in ends)
            table.add_row(variant, losses, str(ends[0][1]), f"{sum(end[2] for end in ends) / len(ends):.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
