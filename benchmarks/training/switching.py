"""Whether the loss jumps where another method takes over in mid-training, one JSON line a training.

    python -m benchmarks.training.switching --problem byte_lm --lr 3e-3 --seeds 0 1 2

AdamW trains under Lightning with SOAP in shadow mode, which is promoted; then Muon, K-FAC and AdamW alone follow each
other. Of every step at which one lets go or takes over: the mean and the largest of the 20 losses after it, over those
of the 20 before. Losses are of training batches; beside them stand the same ratios of AdamW that trains to the end.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from benchmarks.shared.methods import Settings
from benchmarks.shared.problems import PROBLEMS, Problem, load
from benchmarks.training.shadow import QUIET, Training
from lightning_so import KFAC, SOAP, Muon, SecondOrder, Shadow
from lightning_so.core.options import Part

#: Losses on either side of a change.
WINDOW = 20
#: What is asked for at which share of the training.
ASKED = ((0.2, "promote"), (0.45, "muon"), (0.6, "kfac"), (0.85, "adamw"))


class Changes(pl.Callback):
    """Asks for the changes, and notes losses, and the steps at which one lets go or takes over."""

    def __init__(self, second: SecondOrder | None, steps: int) -> None:
        self.losses: list[float] = []
        self.at: dict[int, str] = {}
        self._second, self._acts = second, False
        self._asked = {round(share * steps): what for share, what in ASKED}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note, and ask."""
        self.losses.append(float(outputs["loss"]))
        if self._second is None:
            return
        acts = self._second.engines[0].part is Part.ACTS
        if acts and not self._acts:
            self.at[trainer.global_step - 1] = f"{self._second.engines[0].plan.method.split('(')[0]} takes over"
        self._acts = acts
        what = self._asked.get(trainer.global_step)
        if what is not None:
            if acts:
                self.at[trainer.global_step] = f"{self._second.engines[0].plan.method.split('(')[0]} lets go"
            if what == "promote":
                self._second.promote()
            else:
                self._second.switch({"muon": Muon(), "kfac": KFAC(), "adamw": None}[what])
            self._acts = False


def run(problem: Problem, lr: float, seed: int, second: SecondOrder | None) -> Changes:
    """Train once."""
    generator = torch.Generator().manual_seed(seed)
    batches = [problem.batch(generator) for _ in range(problem.steps)]
    module = Training(problem, problem.model(seed), Settings(lr, steps=problem.steps))
    changes = Changes(second, problem.steps)
    callbacks = [*([] if second is None else [second]), changes]
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=callbacks, **QUIET)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return changes


def ratios(losses: Sequence[float], at: int) -> dict[str, float]:
    """Mean and largest of the losses after a number of steps, over those before."""
    before, after = losses[max(0, at - WINDOW) : at], losses[at : at + WINDOW]
    mean = sum(after) / len(after) / (sum(before) / len(before))
    return {"mean": round(mean, 4), "largest": round(max(after) / max(before), 4)}


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=PROBLEMS, default="byte_lm")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/training/results/switching.jsonl"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for seed in asked.seeds:
        problem = load(asked.problem)
        alone = run(problem, asked.lr, seed, None)
        switched = run(problem, asked.lr, seed, SecondOrder(SOAP(), print_plan=False, shadow=Shadow(share=0.05)))
        changes = [
            {"step": at, "what": what, **ratios(switched.losses, at), "adamw": ratios(alone.losses, at)}
            for at, what in sorted(switched.at.items())
        ]
        line = {"problem": asked.problem, "lr": asked.lr, "seed": seed, "steps": problem.steps, "changes": changes}
        with asked.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(*(f"seed {seed} {change}" for change in changes), sep="\n", flush=True)


if __name__ == "__main__":
    main()
