"""Physics-informed networks in a Trainer: Levenberg and Marquardt beside tuned AdamW, by seconds of one core.

    python -m benchmarks.newton.pinn

Poisson's equation (2-32-32-32-1, 512 points inside and 128 on the boundary, full batch) and Burgers'. Seconds are
process CPU seconds of the whole `fit`, the looks at the error left out.
"""

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

from examples.pinn import PINN, Points
from lightning_so import LevenbergMarquardt, MatrixFree

OUT = Path("benchmarks/newton/results/pinn.jsonl")
#: By name: width, depth, points on the boundary, weight of the boundary.
EQUATIONS = {"poisson": (32, 3, 128, 1.0), "burgers": (20, 4, 250, 10.0)}
#: By name: the learning rate of AdamW, or none for Levenberg and Marquardt.
VARIANTS = {f"AdamW {rate:g}": rate for rate in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)} | {"LevenbergMarquardt": None}
WANTED = (1.0, 0.1, 0.05)


class Clock(pl.Callback):
    """Stops when the time is over, and notes the error now and then."""

    def __init__(self, budget: float) -> None:
        self.budget, self.spent, self.curve = budget, 0.0, list[tuple[int, float, float]]()

    def on_train_start(self, *_: Any) -> None:
        """Start."""
        self.begun = time.process_time()

    def on_validation_start(self, *_: Any) -> None:
        """Hold."""
        self.spent += time.process_time() - self.begun

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note, and go on."""
        error = float(trainer.callback_metrics["relative_error"])
        self.curve.append((trainer.global_step, round(self.spent, 2), round(error, 5)))
        trainer.should_stop = self.spent > self.budget
        self.begun = time.process_time()


def run(
    equation: str, variant: str, seed: int, budget: float, *, double: bool, weight: float | None = None
) -> dict[str, Any]:
    """One training."""
    torch.set_num_threads(1)
    pl.seed_everything(seed, verbose=False)
    width, depth, points, boundary = EQUATIONS[equation]
    boundary = boundary if weight is None else weight
    rate, clock = VARIANTS[variant], Clock(budget)
    callbacks: list[pl.Callback] = [clock]
    if rate is None:
        callbacks.append(MatrixFree(LevenbergMarquardt(), verbose=False))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1_000_000,
        check_val_every_n_epoch=5 if rate is None else 100,
        num_sanity_val_steps=0,
        precision="64-true" if double else "32-true",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    base = {"optimizer": "sgd"} if rate is None else {"optimizer": "adamw", "lr": rate}
    trainer.fit(PINN(equation, width, depth, boundary, **base), Points(points, equation, seed, double))
    return {
        "equation": equation,
        "variant": variant,
        "seed": seed,
        "double": double,
        "boundary": boundary,
        "curve": clock.curve,
    }


def first(curve: list[tuple[int, float, float]], wanted: float) -> str:
    """Seconds to an error."""
    return next((f"{seconds:.1f}" for _, seconds, error in curve if error <= wanted), "-")


def main() -> None:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--equations", nargs="+", default=list(EQUATIONS), choices=list(EQUATIONS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--boundary", type=float, help="weight of the boundary, another than the equation's")
    parser.add_argument("--double", action="store_true", help="in float64")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    table = Table("equation", "variant", "error at the end, %", "steps", *(f"s to {wanted:g} %" for wanted in WANTED))
    with OUT.open("a") as file:
        for equation in args.equations:
            for variant in args.variants:
                found = [
                    run(equation, variant, seed, args.seconds, double=args.double, weight=args.boundary)
                    for seed in args.seeds
                ]
                for one in found:
                    file.write(json.dumps(one) + "\n")
                file.flush()
                curves = [one["curve"] for one in found]
                ends = [(f"{curve[-1][2]:.3g}", str(curve[-1][0])) for curve in curves]
                seconds = [", ".join(first(curve, wanted) for curve in curves) for wanted in WANTED]
                table.add_row(equation, variant, *(", ".join(of) for of in zip(*ends, strict=True)), *seconds)
    Console().print(table)


if __name__ == "__main__":
    main()
