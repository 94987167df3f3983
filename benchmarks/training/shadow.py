"""Shadow mode's prediction against the truth, one JSON line a training.

    python -m benchmarks.training.shadow --problem byte_lm --lrs 3e-3 --shares 0.1 0.25 0.5 --seeds 0 1 2

The prediction: AdamW trains under Lightning with `SecondOrder(SOAP(), shadow=Shadow(share=...))`. The truth: the same
training with SOAP from the start (seed, batches, rate and schedule) until its validation loss, looked at every 5 steps
and interpolated, is that of AdamW's last step. `--table FILE` prints a file.
"""

import argparse
import json
import math
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.shared.loop import Point, trained
from benchmarks.shared.methods import WARMUP, Settings, build
from benchmarks.shared.problems import PROBLEMS, Problem, load
from lightning_so import SOAP, SecondOrder, Shadow

EVERY = 5
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class Training(pl.LightningModule):
    """A problem's training by AdamW, with the benchmarks' schedule."""

    def __init__(self, problem: Problem, model: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.model, self._problem, self._settings = model, problem, settings

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The problem's loss."""
        return self._problem.loss(self.model, tuple(batch))

    def configure_optimizers(self) -> Any:
        """AdamW, warm-up and cosine."""
        made = build("adamw", self.model, self._settings)
        return [made.optimizers[0]], [{"scheduler": made.schedules[0], "interval": "step"}]


def shadowed(problem: Problem, settings: Settings, seed: int, share: float) -> tuple[float, dict[str, Any]]:
    """AdamW's last validation loss, and what its shadow foretells."""
    generator = torch.Generator().manual_seed(seed)
    batches = [problem.batch(generator) for _ in range(settings.steps)]
    module = Training(problem, problem.model(seed), settings)
    second = SecondOrder(SOAP(), print_plan=False, shadow=Shadow(share=share))
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=[second], **QUIET)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    assert second.foretold is not None
    return problem.validation(module.model), second.foretold


def needed(curve: list[Point], level: float) -> float | None:
    """The step at which a curve first comes to a level, between two of its points; None where it does not."""
    for before, after in pairwise(curve):
        if after.loss <= level:
            return before.step + (after.step - before.step) * (before.loss - level) / (before.loss - after.loss)
    return None


def line(name: str, lr: float, seed: int, shares: list[float]) -> dict[str, Any]:
    """One training: the truth, and what each share of steps foretells."""
    problem = load(name)
    settings = Settings(lr, steps=problem.steps)
    losses, found = [], {}
    for share in shares:
        loss, foretold = shadowed(problem, settings, seed, share)
        losses.append(loss)
        found[str(share)] = {
            "steps_share": foretold["steps_share"],
            "seconds_share": round(foretold["seconds_share"], 3),
            "memory": foretold["memory"],
            "text": foretold["text"],
        }
    assert len(set(losses)) == 1, "shadow mode has changed the training"
    model = problem.model(seed)
    truth = needed(trained(problem, model, build("soap", model, settings), seed, problem.steps, EVERY), losses[0])
    return {
        "problem": name,
        "lr": lr,
        "seed": seed,
        "steps": problem.steps,
        "warmup": WARMUP,
        "adamw_loss": losses[0],
        "truth": None if truth is None else round(truth / problem.steps, 4),
        "shares": found,
    }


def table(path: Path) -> str:
    """What is foretold over what is true, by problem, rate and share of steps."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    rows = ["| problem | rate | truth | share | foretold | worst |", "|---|---|---|---|---|---|"]
    for name, lr in dict.fromkeys((each["problem"], each["lr"]) for each in lines):
        some = [each for each in lines if (each["problem"], each["lr"]) == (name, lr)]
        truth = ", ".join(f"{each['truth']:.3f}" for each in some)
        for share in some[0]["shares"]:
            told = [each["shares"][share]["steps_share"] for each in some]
            pairs = [(t, each["truth"]) for t, each in zip(told, some, strict=True) if t is not None]
            worst = max((t / true - 1 for t, true in pairs), key=abs, default=math.nan)
            texts = ", ".join("-" if t is None else f"{t:.3f}" for t in told)
            rows.append(f"| {name} | {lr:g} | {truth} | {share} | {texts} | {worst:+.0%} |")
    return "\n".join(rows)


def main() -> None:
    """Run, or print a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=PROBLEMS, default="byte_lm")
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/training/results/shadow.jsonl"))
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    if asked.table is not None:
        print(table(asked.table))
        return
    torch.set_num_threads(1)
    for lr, seed in product(asked.lrs, asked.seeds):
        found = line(asked.problem, lr, seed, asked.shares)
        with asked.out.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(found, flush=True)


if __name__ == "__main__":
    main()
