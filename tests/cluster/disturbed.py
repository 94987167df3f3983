"""Ranks on two hosts, and a cable that loses packets or is taken out within a step; forked as those of `faults` are."""

import os
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import ModelCheckpoint

from tests.support.forked import forking
from tests.support.inside import Inside
from tests.support.trainings import train

#: How long the ranks wait for each other, and for how long packets are lost.
TIMEOUT, LOST = 10, 2
#: At which step of ours something happens, and after how many there is a checkpoint.
AT, EVERY, STEPS = 14, 4, 24
PORT = 29500


class Cable(Inside):
    """Before an exchange begins, rank 0 does something to the cable of rank 1; then both go on."""

    def __init__(self, what, where, host, out) -> None:
        self.what, self.where, self.host, self.out, self.facts = what, where, host, out, {}

    def on_train_start(self, trainer, pl_module) -> None:
        super().on_train_start(trainer, pl_module)
        self.engine = trainer.callbacks[0].engines[0]
        comm = self.engine.host.team
        for where, name in (("guard", "anywhere"), ("solves", "start_gather")):
            setattr(comm, name, self.after_happening(where, getattr(comm, name)))

    def after_happening(self, where, exchange):
        def late(*arguments):
            self.come(where)
            return exchange(*arguments)

        return late

    def on_train_batch_start(self, *_) -> None:
        self.before = self.weights()

    def happen(self, trainer) -> None:
        self.come("hidden")

    def come(self, where) -> None:
        if where != self.where or self.engine.report.step != AT or self.facts:
            return
        self.facts = {"acting": len(self.engine.hidden)}
        done = self.out / "done"
        if dist.get_rank() == 0:
            getattr(self.host, self.what)()
            if self.what == "drop":
                threading.Timer(LOST, self.host.undrop).start()
            done.touch()
        while not done.exists():  # Else its part of the exchange could be through before.
            time.sleep(0.01)
        self.began, self.waited = time.perf_counter(), self.engine.host.team.seconds

    def on_train_end(self, trainer, pl_module) -> None:
        super().on_train_end(trainer, pl_module)
        if self.facts:
            self.facts["waited"] = self.engine.host.team.seconds - self.waited

    def on_exception(self, trainer, pl_module, exception) -> None:
        super().on_exception(trainer, pl_module, exception)
        self.facts |= {"seconds": time.perf_counter() - self.began, "left": len(self.engine.hidden)}
        self.facts |= {"before": self.before, "after": self.weights(), "cause": str(exception)}
        torch.save(self.facts, self.out / f"rank{dist.get_rank()}.pt")

    def weights(self):
        """This rank's pieces of the weights that SecondOrder changes."""
        return {block.name: self.engine.host.access.weight(block.param).clone() for block in self.engine.plan.blocks}


def rank(number, hosts, case, arguments, out, resume) -> None:
    """One rank of two, on its host; what it writes to stderr is in a file."""
    with (out / f"rank{number}.txt").open("w") as file:
        os.dup2(file.fileno(), 2)
    hosts[number].enter()
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
    torch.set_num_threads(1)
    meeting, patience = f"tcp://{hosts[0].address}:{PORT}", timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=2, timeout=patience)
    strategy, what, where = case.split()
    cable = Cable(what, where, hosts[1], out)
    last = ModelCheckpoint(dirpath=out / "checkpoints", every_n_train_steps=EVERY)
    trained = train(strategy, *arguments, steps=STEPS, callbacks=[cable, last], resume=resume)
    torch.save((trained.weights, trained.report.portable(), cable.facts), out / f"rank{number}.pt")
    dist.destroy_process_group()


def start(hosts, case, arguments, out, resume=None):
    """The two processes of a case: strategy, what is done to the cable, and when ("guard", "solves", "hidden")."""
    context = forking()
    out.mkdir()
    ranks = [context.Process(target=rank, args=(n, hosts, case, arguments, out, resume)) for n in range(2)]
    for process in ranks:
        process.start()
    return ranks
