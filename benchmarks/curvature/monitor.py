"""What CurvatureMonitor adds to a training: Trainers side by side in one process, step by step, on the same batches.

    python -m benchmarks.curvature.monitor --problem byte_lm --steps 1000

Each Trainer fits in a thread of its own, and one runs at a time, from the start of a step to that of its next. Times
are process CPU time of one thread; the two without the monitor differ by noise. `by_part` is what the monitor's looks
cost: at the Hessian (every 1000 steps), at steps and layers (every 100), and at all other steps.
"""

import argparse
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from benchmarks.shared.problems import PROBLEMS, Problem, load
from benchmarks.shared.table import append, headed, machine, show
from lightning_so import CurvatureMonitor


class Module(pl.LightningModule):
    """A problem under AdamW."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem, self.net = problem, problem.model(0)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.problem.loss(self.net, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


class Turns:
    """Whose turn it is among threads."""

    def __init__(self, count: int) -> None:
        self.left, self.now, self.changed = set(range(count)), 0, threading.Condition()

    def wait(self, number: int) -> None:
        """Wait for one's turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.now == number)

    def end(self, number: int, *, leave: bool = False) -> None:
        """Hand the turn on."""
        with self.changed:
            after = sorted(self.left, key=lambda other: (other <= number, other))
            self.left -= {number} if leave else set()
            self.now = next((other for other in after if other in self.left), -1)
            self.changed.notify_all()


class Lane(pl.Callback):
    """One Trainer; the last of its callbacks, so that a step ends when all others have ended it."""

    def __init__(self, number: int, turns: Turns) -> None:
        self.number, self.turns, self.begun, self.milliseconds = number, turns, 0.0, list[float]()

    def on_train_start(self, *_: Any) -> None:
        self.begun = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.milliseconds.append(1e3 * (time.process_time() - self.begun))
        self.turns.end(self.number)
        self.turns.wait(self.number)
        self.begun = time.process_time()


def fit(problem: Problem, batches: list[Any], ours: list[Any], lane: Lane) -> None:
    """Train to the end, a step a turn."""
    lane.turns.wait(lane.number)
    try:
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, callbacks=[*ours, lane], enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Module(problem), DataLoader(batches, batch_size=None))
    finally:
        lane.turns.end(lane.number, leave=True)


def measure(problem: Problem, steps: int, monitor: dict[str, Any]) -> list[dict[str, Any]]:
    """One record a variant."""
    generator = torch.Generator().manual_seed(0)
    batches = [problem.batch(generator) for _ in range(steps)]
    variants = {"adamw": [], "adamw again": [], "CurvatureMonitor": [CurvatureMonitor(**monitor)]}
    turns = Turns(len(variants))
    lanes = [Lane(number, turns) for number in range(len(variants))]
    threads = [
        threading.Thread(target=fit, args=(problem, batches, ours, lane))
        for ours, lane in zip(variants.values(), lanes, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ms = np.array([lane.milliseconds for lane in lanes])
    # What the machine does to one step of a lane is not the lane's: the plain lanes say what is usual.
    usual = np.median(ms[:2])
    every = CurvatureMonitor(**monitor).every
    number = np.arange(1, steps + 1)
    hessian, step = number % every == 0, number % max(1, every // 10) == 0
    parts = {"hessian": hessian, "step": step & ~hessian, "other": ~step}
    return [
        {
            "variant": name,
            "mean_ms": float(row.mean()),
            "median_ms": float(np.median(row)),
            "to_adamw": float(row.sum() / ms[0].sum()),
            "added": float((row - usual)[step].sum() / (usual * steps)),
            "by_part": {part: float(np.median(row[here]) - usual) for part, here in parts.items() if here.any()},
        }
        for name, row in zip(variants, ms, strict=True)
    ]


def main() -> None:
    """Measure, print, append JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--problem", default="byte_lm", choices=list(PROBLEMS))
    add("--steps", type=int, default=1000)
    add("--every", type=int, default=1000)
    add("--out", type=Path, default=Path("benchmarks/curvature/results/monitor.jsonl"), help="lines are appended")
    args = parser.parse_args()

    torch.set_num_threads(1)
    records = measure(load(args.problem), args.steps, {"every": args.every})
    facts = {"problem": args.problem, "steps": args.steps, "every": args.every, **machine("cpu")}
    append(args.out, [{**facts, **record} for record in records])
    table = headed(
        ["variant", "ms a step", "median", "to AdamW", "added", "by part"], f"{args.problem}, {args.steps} steps"
    )
    for record in records:
        parts = ", ".join(f"{part} {ms:.1f}" for part, ms in record["by_part"].items())
        numbers = record["mean_ms"], record["median_ms"], record["to_adamw"], record["added"]
        table.add_row(record["variant"], *(f"{number:.4f}" for number in numbers), parts)
    show(table)


if __name__ == "__main__":
    main()
