"""What SharpnessGuard does at learning rates that are right, and too large: an MLP on digits, full batches, Adam.

    python -m benchmarks.curvature.sharpness

Every training has the same number of gradient evaluations: those that the guard takes are charged. Losses are of the
last step, medians of the seeds; a rate whose loss is above that of a guess (2.30) has diverged.
"""

import argparse
import json
import warnings
from pathlib import Path
from statistics import median

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_so import SharpnessGuard
from lightning_so.callbacks.sharpness import FIRST


class Digits(pl.LightningModule):
    """An MLP of three layers on all digits at once."""

    def __init__(self, rate: float, seed: int) -> None:
        """Make it."""
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
        images, labels = load_digits(return_X_y=True)
        self.x, self.y = torch.tensor(images).float() / 16, torch.tensor(labels)
        self.rate, self.loss = rate, float("nan")

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """The loss of all digits."""
        loss = nn.functional.cross_entropy(self.net(self.x), self.y)
        self.loss = loss.item()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.rate)


def train(rate: float, seed: int, evaluations: int, every: int | None) -> float:
    """The loss at the end."""
    callbacks, steps = [], evaluations
    if every is not None:
        callbacks = [SharpnessGuard(every=every, verbose=False)]
        # Each look computes the gradient where it is, and one a product; the first one is tried out besides.
        steps = round((evaluations - FIRST - 3) / (1 + 2 / every))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    module = Digits(rate, seed)
    trainer.fit(module, DataLoader(range(steps), batch_size=1))
    return module.loss


def main() -> None:
    """Measure, print a table, append JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--lrs", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1])
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--evaluations", type=int, default=300)
    add("--every", type=int, nargs="+", default=[10, 40])
    add("--out", type=Path, default=Path("benchmarks/curvature/results/sharpness.jsonl"), help="lines are appended")
    args = parser.parse_args()

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table = Table(title=f"cross-entropy after {args.evaluations} gradient evaluations, median of {len(args.seeds)}")
    variants = {"Adam": None, **{f"guarded every {every}": every for every in args.every}}
    for head in ("lr", *variants):
        table.add_column(head, justify="right")
    with args.out.open("a") as file:
        for rate in args.lrs:
            cells = []
            for name, every in variants.items():
                losses = [train(rate, seed, args.evaluations, every) for seed in args.seeds]
                cells.append(f"{median(losses):.4f}")
                facts = {"variant": name, "lr": rate, "evaluations": args.evaluations, "seeds": args.seeds}
                print(json.dumps({**facts, "losses": losses}), file=file)
            table.add_row(f"{rate:g}", *cells)
    Console(width=100).print(table)
    print(f"results: {args.out}")


if __name__ == "__main__":
    main()
