"""Ranks that die or stall in the middle of a step: processes that are forked from one that has imported everything."""

import os
import signal
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from lightning_so.core.step import act
from tests.support.forked import forking
from tests.support.trainings import train

#: How long the ranks wait for each other.
TIMEOUT = 10
#: At which step of ours something happens, and after how many there is a checkpoint.
AT, EVERY = 14, 4
#: Longer than any survivor needs.
LONG = 3600


class Fault(pl.Callback):
    """On rank 1 something happens; rank 0 writes down what is left of the weights then."""

    def __init__(self, what, where, out) -> None:
        self.what, self.where, self.out = what, where, out

    def on_train_start(self, trainer, pl_module) -> None:
        self.engine, begin = trainer.callbacks[0].engines[0], act.begin

        def begun(*arguments) -> Any:
            self.happen("solved")
            acting = begin(*arguments)
            self.happen("hidden")
            return acting

        act.begin = begun

    def on_train_batch_start(self, *_) -> None:
        self.before = self.weights()

    def happen(self, where) -> None:
        if where != self.where or self.engine.report.step != AT:
            return
        if dist.get_rank() == 0:
            self.began, self.acting = time.perf_counter(), len(self.engine.hidden)
        elif self.what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            time.sleep(LONG)

    def on_exception(self, trainer, pl_module, exception) -> None:
        facts = {"seconds": time.perf_counter() - self.began, "acting": self.acting, "left": len(self.engine.hidden)}
        torch.save({**facts, "before": self.before, "after": self.weights()}, self.out / "facts.pt")

    def weights(self):
        """This rank's pieces of the weights that SecondOrder changes."""
        pieces = {block.name: self.engine.host.access.weight(block.param) for block in self.engine.plan.blocks}
        return {name: piece.clone() for name, piece in pieces.items()}


def rank(number, case, arguments, out) -> None:
    """One rank of two; what it writes to stderr is in a file."""
    strategy, what, where = case.split()
    with (out / f"rank{number}.txt").open("w") as file:
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    patience = timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=number, world_size=2, timeout=patience)
    last = ModelCheckpoint(dirpath=out / "checkpoints", every_n_train_steps=EVERY)
    # Under the others it would need the rank that is not there.
    late = [OnExceptionCheckpoint(out)] if strategy == "ddp" else []
    train(strategy, *arguments, callbacks=[Fault(what, where, out), last, *late])


def start(case, arguments, out):
    """The two processes of a case."""
    context = forking()
    ranks = [context.Process(target=rank, args=(n, case, arguments, out)) for n in range(2)]
    for process in ranks:
        process.start()
    return ranks
