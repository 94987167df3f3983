"""Trainings that a signal stops at a chosen place of a step, on one rank of several, and what goes on from there."""

import os
import signal

import torch.distributed as dist

from lightning_so.callbacks.restart.restartable import Restartable, Stopped
from tests.support.inside import Inside
from tests.support.trainings import train

#: At which step of ours a signal comes.
AT = 10
#: Places of a step, in their order: hooks of the Trainer, and the beginnings of the engine's stages.
PLACES = ("start", "backward", "guard", "observe", "solve", "act", "hidden", "finish", "end")


class Signal(Inside):
    """At one place of a step a signal comes, on one rank."""

    def __init__(self, place, number, rank) -> None:
        self.place, self.number, self.rank, self.sent = place, number, rank, False

    def on_train_start(self, trainer, pl_module) -> None:
        super().on_train_start(trainer, pl_module)
        self.engine = trainer.callbacks[0].engines[0]
        stage = self.engine.stopwatch.stage

        def begun(name):
            self.come(name)
            return stage(name)

        self.engine.stopwatch.stage = begun

    def on_train_batch_start(self, *_) -> None:
        self.come("start")

    def on_before_backward(self, *_) -> None:
        self.come("backward")

    def happen(self, trainer) -> None:
        self.come("hidden")

    def on_train_batch_end(self, *_) -> None:
        self.come("end")

    def come(self, place) -> None:
        rank = dist.get_rank() if dist.is_initialized() else 0
        if place == self.place and rank == self.rank and self.engine.report.step == AT and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


def kept():
    """What a process does with the signals."""
    numbers = signal.SIGUSR1, signal.SIGTERM
    return [signal.getsignal(each) for each in numbers], signal.pthread_sigmask(signal.SIG_BLOCK, ())


def stopped(strategy, how, folder, place, number=signal.SIGTERM, rank=1, **named):
    """The exit status with which a training ends, where a signal comes; None if none did."""
    before, sender = kept(), Signal(place, number, rank)
    try:
        train(strategy, *how, callbacks=[sender, Restartable(folder)], **named)
    except Stopped as end:
        # Lightning puts the handlers back that it has found, which are ours; they hand on what comes.
        assert kept()[1] == before[1]
        return end.code
    return None


def resumed(strategy, how, folder, **named):
    """The rest of it."""
    restartable = Restartable(folder)
    return train(strategy, *how, callbacks=[restartable], resume=restartable.newest(), **named)
