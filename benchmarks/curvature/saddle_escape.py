"""What it takes to leave a saddle of 100 dimensions: SGD with momentum and Adam, with and without SaddleEscape.

    python -m benchmarks.curvature.saddle_escape

Five directions, in a dense basis, have curvatures from -.01 to -1 and quartic walls at distance one; the others have
curvatures from 1 to 100 (saddle "stiff") or from .01 to 1 ("mild"). Trainings start 1e-6 from the saddle in all
directions ("near"), from afar along the others ("far"), or exactly on the ridge, where with axes for a basis the
gradients off it are 0 ("ridge").
Counted are gradients until the loss has fallen by 50, 90 and 99 % of the height of the saddle above the minimum, those
that SaddleEscape takes charged; each optimizer at the rate of the grid that is best for the median of the seeds.
"""

import argparse
import itertools
import json
import logging
import math
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_so import SaddleEscape

SHARES = (0.5, 0.9, 0.99)
NEGATIVE, DIMENSIONS = 5, 100
ENDS = {"stiff": (1.0, 100.0), "mild": (0.01, 1.0)}


class Saddle(pl.LightningModule):
    """`sum(c z^2 / 2 + |min(c, 0)| z^4 / 4)` above its minimum, z the weights in a basis."""

    def __init__(self, kind: str, start: str, seed: int, base: str, rate: float, escape: SaddleEscape | None) -> None:
        """Make it."""
        super().__init__()
        low, high = (math.log10(end) for end in ENDS[kind])
        generator = torch.Generator().manual_seed(seed)
        random = {"generator": generator, "dtype": torch.float64}
        Q = torch.linalg.qr(torch.randn(DIMENSIONS, DIMENSIONS, **random))[0]
        self.basis = torch.eye(DIMENSIONS, dtype=torch.float64) if start == "ridge" else Q
        negative = -torch.logspace(-2, 0, NEGATIVE, dtype=torch.float64)
        self.c = torch.cat([negative, torch.logspace(low, high, DIMENSIONS - NEGATIVE, dtype=torch.float64)])
        z = 1e-6 * torch.randn(DIMENSIONS, **random)
        if start != "near":
            z[NEGATIVE:] = torch.randn(DIMENSIONS - NEGATIVE, **random)
        if start == "ridge":
            z[:NEGATIVE] = 0
        self.w = nn.Parameter(self.basis @ z)
        self.height = -negative.sum().item() / 4
        self.base, self.rate, self.escape = base, rate, escape
        self.steps: dict[float, int] = {}
        self.evaluations: dict[float, int] = {}

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """The loss, which is 0 at the minimum."""
        z = self.basis.mT @ self.w
        return (self.c * z.square() / 2 - self.c.clamp(max=0) * z**4 / 4).sum() + self.height

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count."""
        self.trainer.should_stop = self.ended(outputs["loss"].item(), batch_idx)

    def ended(self, loss: float, step: int) -> bool:
        """Count; whether it is down, or has diverged."""
        for share in SHARES:
            if share not in self.steps and loss < (1 - share) * self.height:
                self.steps[share] = step
                self.evaluations[share] = step + (self.escape.evaluations if self.escape else 0)
        return not math.isfinite(loss) or len(self.steps) == len(SHARES)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD or Adam."""
        if self.base == "Adam":
            return torch.optim.Adam([self.w], lr=self.rate)
        return torch.optim.SGD([self.w], lr=self.rate, momentum=0.9)


def train(kind: str, start: str, seed: int, base: str, rate: float, products: int | None, args: Any) -> Saddle:
    """One training."""
    escape = None
    if products is not None:
        escape = SaddleEscape(every=args.every, products=products, curvature=args.curvature, verbose=False)
    module = Saddle(kind, start, seed, base, rate, escape)
    if escape is None:  # The same steps, ten times as fast.
        optimizer = module.configure_optimizers()
        for step in range(args.steps):
            optimizer.zero_grad()
            loss = module.training_step(torch.empty(0), step)
            if module.ended(loss.item(), step):
                break
            loss.backward()
            optimizer.step()
        return module
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=args.steps,
        callbacks=[escape],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, DataLoader(range(args.steps), batch_size=1))
    return module


def main() -> None:
    """Measure, print tables, append JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--adam", type=float, nargs="+", default=[3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1, 3, 10])
    add("--sgd", type=float, nargs="+", default=[3e-2, 1e-1, 3e-1, 1, 2, 3], help="over the largest curvature")
    add("--saddles", nargs="+", default=["stiff-near", "stiff-far", "stiff-ridge", "mild-near", "mild-far"])
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--steps", type=int, default=700)
    add("--every", type=int, default=20)
    add("--products", type=int, nargs="+", default=[16], help="of SaddleEscape, in variants")
    add("--curvature", choices=["measured", "constant"], default="measured", help="of SaddleEscape")
    add("--out", type=Path, default=Path("benchmarks/curvature/results/saddle_escape.jsonl"), help="lines are appended")
    args = parser.parse_args()

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    table = Table(title=f"gradients to fall by 50 / 90 / 99 %, median of {len(args.seeds)}, best rate for each")
    variants = list(itertools.product(("SGD", "Adam"), (None, *args.products)))
    for head in ("saddle", *(f"{base}{f' + {many}' if many else ''}" for base, many in variants)):
        table.add_column(head, justify="right")
    with args.out.open("a") as file:
        for kind, start in (saddle.split("-") for saddle in args.saddles):
            cells = []
            for base, products in variants:
                best = dict.fromkeys(SHARES, math.inf)
                for grid in args.adam if base == "Adam" else args.sgd:
                    rate = grid if base == "Adam" else grid / ENDS[kind][1]
                    runs = [train(kind, start, seed, base, rate, products, args) for seed in args.seeds]
                    facts: dict[str, Any] = {
                        "saddle": kind,
                        "start": start,
                        "base": base,
                        "lr": rate,
                        "products": products,
                    }
                    found: dict[str, Any] = {
                        "escapes": [run.escape.escapes if run.escape else 0 for run in runs],
                        "steps": {share: [run.steps.get(share) for run in runs] for share in SHARES},
                        "evaluations": {share: [run.evaluations.get(share) for run in runs] for share in SHARES},
                    }
                    facts |= {"every": args.every, "curvature": args.curvature, "seeds": args.seeds, **found}
                    print(json.dumps(facts), file=file, flush=True)
                    for share in SHARES:
                        best[share] = min(best[share], median(run.evaluations.get(share, math.inf) for run in runs))
                cells.append(" / ".join("-" if value == math.inf else f"{value:g}" for value in best.values()))
            table.add_row(f"{kind}, {start}", *cells)
    Console(width=140).print(table)
    print(f"results: {args.out}")


if __name__ == "__main__":
    main()
