"""AdamW with its second moment replaced by curvature: AdaHessian and Sophia, on a small CNN, at equal tuning.

    python -m benchmarks.newton.adahessian --problem cnn --seeds 0 1 2

Every method runs the same steps and schedule (warm-up, then a cosine), on the first seed at its five rates, each three
times the last, and at more while the best is at an end; the other seeds at the best of these and both beside it.
Products are exact. A cell's loss is the validation loss at the end; gradients are those besides the training's own, of
which a product by double backward counts for two; seconds are process CPU seconds of a step.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.shared.methods import WARMUP
from benchmarks.shared.problems import Problem, load
from examples.byte_lm import warmup_cosine
from lightning_so import AdaHessian, Sophia, attach

OUT = Path("benchmarks/newton/results/adahessian.jsonl")
#: By name: the method or None, the base's arguments, the middle of the grid.
VARIANTS: dict[str, tuple[Any, dict[str, Any], float]] = {
    "AdamW": (None, {}, 1e-2),
    "Sophia()": (Sophia(), {"betas": (0.96, 0.99)}, 3e-3),
    "AdaHessian()": (AdaHessian(), {"eps": 1e-4}, 1e-1),
    "AdaHessian('diagonal')": (AdaHessian("diagonal"), {"eps": 1e-4}, 3e-2),
    "AdaHessian(curvature='constant')": (AdaHessian(curvature="constant"), {"eps": 1e-4}, 1e-1),
    "AdaHessian(every=4)": (AdaHessian(every=4), {"eps": 1e-4}, 1e-1),
}
#: Rates on either side of the middle, and how many more there may be.
SIDE, MORE = 2, 3


def run(problem: Problem, variant: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """One training; its loss is None where it diverged."""
    torch.set_num_threads(1)
    method, options, _ = VARIANTS[variant]
    model = problem.model(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, **{"betas": (0.9, 0.999), "weight_decay": 0.0, **options}
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, total=steps, warmup=WARMUP)
    )
    engine = None if method is None else attach(model, optimizer, method, product="exact")
    generator, seconds = torch.Generator().manual_seed(seed), 0.0
    for _ in range(steps):
        batch = problem.batch(generator)

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = problem.loss(model, batch, "mean")
            loss.backward()
            return loss

        begun = time.process_time()
        optimizer.step(closure)
        seconds += time.process_time() - begun
        schedule.step()
    loss = problem.validation(model)
    scalars = {} if engine is None else {name: round(value, 4) for name, value in engine.scalars().items()}
    return {
        "problem": problem.name,
        "variant": variant,
        "rate": rate,
        "seed": seed,
        "steps": steps,
        "loss": round(loss, 5) if math.isfinite(loss) else None,
        "seconds_a_step": round(seconds / steps, 5),
        "scalars": scalars,
    }


def best(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The line with the least loss."""
    return min(lines, key=lambda line: math.inf if line["loss"] is None else line["loss"])


def tuned(problem: Problem, variant: str, seeds: list[int], steps: int) -> list[dict[str, Any]]:
    """The runs of a variant: the first seed's grid, and the others around its best."""
    middle = VARIANTS[variant][2]
    rates = [float(f"{middle * math.sqrt(10.0) ** k:.1g}") for k in range(-SIDE, SIDE + 1)]
    lines = [run(problem, variant, rate, seeds[0], steps) for rate in rates]
    for _ in range(MORE):
        at = rates.index(best(lines)["rate"])
        if 0 < at < len(rates) - 1:
            break
        rate = float(f"{rates[at] * (math.sqrt(10.0) if at else 1 / math.sqrt(10.0)):.1g}")
        rates.insert(at + 1 if at else 0, rate)
        lines.append(run(problem, variant, rate, seeds[0], steps))
    at = rates.index(best(lines)["rate"])
    around = rates[max(at - 1, 0) : at + 2]
    return lines + [run(problem, variant, rate, seed, steps) for seed in seeds[1:] for rate in around]


def show(lines: list[dict[str, Any]]) -> None:
    """Print the table of some runs."""
    table = Table("variant", "rates", "best, median", "loss, by seed", "mean", "gradients besides", "ms a step")
    for variant in dict.fromkeys(line["variant"] for line in lines):
        mine = [line for line in lines if line["variant"] == variant]
        rates, seeds = sorted({line["rate"] for line in mine}), sorted({line["seed"] for line in mine})
        by_rate = {rate: [line for line in mine if line["rate"] == rate] for rate in rates}
        full = {rate: of for rate, of in by_rate.items() if len(of) == len(seeds)}
        losses = {r: [math.inf if line["loss"] is None else line["loss"] for line in of] for r, of in full.items()}
        rate = min(losses, key=lambda r: median(losses[r]))
        edge = " (edge)" * (rate in (rates[0], rates[-1]))
        found = full[rate]
        table.add_row(
            variant,
            f"{len(rates)}, {rates[0]:g} to {rates[-1]:g}",
            f"{rate:g}{edge}",
            ", ".join(f"{loss:.4f}" for loss in losses[rate]),
            f"{mean(losses[rate]):.4f}",
            f"{found[0]['scalars'].get('curv/evaluations', 0):.0f}",
            f"{1e3 * median(line['seconds_a_step'] for line in mine):.1f}",
        )
    Console(width=160).print(table)


def main() -> None:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="cnn")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rates", type=float, nargs="+", help="these on all seeds, and no grid")
    parser.add_argument("--show", action="store_true", help="print the table of the runs that there are")
    args = parser.parse_args()
    if not args.show:
        problem = load(args.problem)
        for variant in args.variants:
            with OUT.open("a") as file:
                pairs = [(rate, seed) for rate in args.rates or [] for seed in args.seeds]
                given = [run(problem, variant, rate, seed, args.steps) for rate, seed in pairs]
                for line in given or tuned(problem, variant, args.seeds, args.steps):
                    print(json.dumps(line), file=file, flush=True)
    show([json.loads(text) for text in OUT.read_text().splitlines()])


if __name__ == "__main__":
    main()
