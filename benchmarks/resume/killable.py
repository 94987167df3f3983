"""A training that saves at every step and, where it is told to, dies: `compare.py` starts it again and again.

    python -m benchmarks.resume.killable FOLDER --method soap --ranks 2 --step 12 --place backward --rank 1

It goes on from FOLDER/last.ckpt if that is there. At the end every rank writes its weights to FOLDER/rankR.pt.
"""

import argparse
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from examples.byte_lm import ByteLM, Windows, corpus, next_byte_loss
from lightning_so import KFAC, SOAP, Muon, SecondOrder
from lightning_so.core.step import act

STEPS, BATCH, CONTEXT = 40, 8, 32
LAST = "last.ckpt"

#: By number of ranks, from three on the last. Plain DDP packs its buckets anew after its first iteration, in a resumed
#: run too, and a gradient's place in its bucket sets the order in which the ranks' parts are summed: two parts have one
#: sum, three have several. A DDP that looks for unused parameters keeps its buckets.
STRATEGIES = ["auto", "ddp", "ddp_find_unused_parameters_true"]

METHODS: dict[str, Callable[[], list[pl.Callback]]] = {
    "adamw": list,  # the control: what DDP and Lightning alone can do
    "soap": lambda: [SecondOrder(SOAP(start=10, period=4))],
    "muon": lambda: [SecondOrder(Muon())],
    "kfac": lambda: [SecondOrder(KFAC(period=4))],
    "kfac_sgd": lambda: [SecondOrder(KFAC(period=4))],
}

#: Where in a step a run can be killed, in the order of the step. "instant" is anywhere: a timer on another thread.
PLACES = {
    "batch": "before the forward pass",
    "instant": "anywhere in the step",
    "backward": "after the backward pass",
    "hidden": "in the optimizer's step, weights hidden",
    "stepped": "after the step, not saved yet",
    "written": "checkpoint written, not renamed",
    "saved": "after saving",
}


class Model(ByteLM):
    """The byte transformer of the examples, small; its data are a function of `global_step` alone."""

    def __init__(self, method: str) -> None:
        torch.manual_seed(0)
        super().__init__(d=32, layers=1, heads=2, context=CONTEXT, lr=1e-2, total_steps=STEPS, warmup=5)
        self.method = method
        self.windows = Windows(corpus()[0], CONTEXT, STEPS * BATCH, seed=0)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Loss of this rank's share of the step's windows."""
        first = self.global_step * BATCH
        mine = range(first, first + BATCH)[self.global_rank :: self.trainer.world_size]
        return next_byte_loss(self.model, default_collate([self.windows[i] for i in mine]))

    def configure_optimizers(self) -> Any:
        """The example's AdamW; SGD with momentum for methods that ask for it."""
        if self.method.endswith("_sgd"):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return super().configure_optimizers()


class Record(pl.Callback):
    """Notes how many blocks rotate after each step; writes that and the weights when training ends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rotating = folder, dict[int, int]()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Look at the engine's report, where there is an engine."""
        engines = [engine for each in trainer.callbacks if isinstance(each, SecondOrder) for engine in each.engines]
        self.rotating[trainer.global_step] = sum(engine.report.rotated for engine in engines)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Every rank writes its own file."""
        facts = {"weights": pl_module.state_dict(), "rotating": self.rotating}
        torch.save(facts, self.folder / f"rank{trainer.global_rank}.pt")


class Die(pl.Callback):
    """Kills the whole process group, every rank in it, when one rank comes to a place in a step."""

    def __init__(self, step: int, place: str, rank: int, fraction: float) -> None:
        self.target, self.fraction = (step, place, rank), fraction
        self.now, self.begun, self.duration = 0, 0.0, 0.0

    def at(self, trainer: pl.Trainer, place: str) -> None:
        """Die, if this is where."""
        if (self.now, place, trainer.global_rank) == self.target:
            kill()

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Steps count from 1; an instant is a part of the time that the step before took, saving included."""
        before, self.begun = self.begun, time.perf_counter()
        self.now, self.duration = trainer.global_step + 1, self.begun - before
        self.at(trainer, "batch")
        if (self.now, "instant", trainer.global_rank) == self.target:
            threading.Timer(self.fraction * self.duration, kill).start()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gradients are reduced."""
        self.at(trainer, "backward")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Inside the optimizer's step statistics are folded, due units solved and weights zero: no hook is there."""
        begin = act.begin

        def begun(*arguments: Any) -> Any:
            acting = begin(*arguments)
            self.at(trainer, "hidden")
            return acting

        act.begin = begun


def kill() -> None:
    """SIGKILL to all ranks at once; nothing can catch it."""
    os.killpg(0, signal.SIGKILL)


class Save(pl.Callback):
    """A checkpoint after every step, written beside the last one and renamed: a kill never leaves half a file."""

    def __init__(self, folder: Path, die: Die) -> None:
        self.path, self.die = folder / LAST, die

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save; only when all ranks have come out of that is the file renamed."""
        self.die.at(trainer, "stepped")
        part = self.path.with_suffix(".part")
        trainer.save_checkpoint(part)
        self.die.at(trainer, "written")
        if trainer.is_global_zero:
            part.replace(self.path)
        self.die.at(trainer, "saved")


def train(folder: Path, method: str, ranks: int, die: Die) -> None:
    """Train to the end or to where it dies, from the last checkpoint where there is one."""
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=STRATEGIES[min(ranks, 3) - 1],
        max_steps=STEPS,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*METHODS[method](), Record(folder), die, Save(folder, die)],
    )
    last = folder / LAST
    # The loader only counts; it is longer than the training, so that no epoch ends in it.
    loader = DataLoader(range(10 * STEPS), batch_size=None)
    trainer.fit(Model(method), loader, ckpt_path=str(last) if last.exists() else None)


def main() -> None:
    """The command line; every rank is started with the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path)
    add("--method", choices=list(METHODS), default="soap")
    add("--ranks", type=int, default=1)
    add("--step", type=int, default=0, help="die in this step, counted from 1 (default: never)")
    add("--place", choices=list(PLACES), default="batch", help="where in the step")
    add("--rank", type=int, default=0, help="whose arrival there kills all ranks")
    add("--fraction", type=float, default=0.5, help="for --place instant: the part of a step's time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train(args.folder, args.method, args.ranks, Die(args.step, args.place, args.rank, args.fraction))


if __name__ == "__main__":
    main()
