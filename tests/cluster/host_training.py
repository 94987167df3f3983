"""Trainings of a real Trainer, a rank on each of several hosts: torchrun ... -m tests.cluster.host_training OUT."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from lightning_so import KFAC, SOAP, SecondOrder
from lightning_so.core.trust.traffic import traffic
from tests.cluster.hosts import sent_through

WIDTH, BATCH, PERIOD = 96, 32, 4
METHODS = {
    "soap": (SOAP(start=10, period=PERIOD), torch.optim.AdamW, {"lr": 1e-3}),
    "kfac": (KFAC(fisher="empirical", period=PERIOD), torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
}
#: Intervals are at their largest after ten of them, and in their slots after one more; then bytes are counted.
SETTLED, COUNTED = 11 * PERIOD, 4 * PERIOD
TIMEOUT = 60


class Module(pl.LightningModule):
    """A small net in float64; every item is a global batch, and each rank takes its strided part."""

    def __init__(self, name) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"in": WIDTH, "out": WIDTH}
        layers = [nn.Linear(sizes["in"], sizes["out"]) for _ in range(3)]
        self.net, self.name = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).double(), name

    def training_step(self, number, _):
        generator = torch.Generator().manual_seed(int(number))
        x = torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64)
        x = x[self.global_rank :: self.trainer.world_size]
        return (self.net(x) - x.roll(1, 1).sin()).square().mean()

    def configure_optimizers(self):
        _, base, arguments = METHODS[self.name]
        return base(self.parameters(), **arguments)


class Count(pl.Callback):
    """Counts what the engine says it has sent, and what has left this host."""

    def __init__(self, ours) -> None:
        self.ours, self.counts = ours, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.world_size > 1 and trainer.global_step in (SETTLED, SETTLED + COUNTED):
            dist.barrier()  # All that was sent has come, unless it was lost.
            self.counts[trainer.global_step] = (self.ours.engines[0].report.sent, sent_through("eth0"))

    def on_train_end(self, trainer, pl_module) -> None:
        engine = self.ours.engines[0]
        self.facts = {
            "weights": {name: value.clone() for name, value in pl_module.net.state_dict().items()},
            "solves": (engine.report.solved_here, engine.report.solves, engine.report.failures),
            "predicted": traffic(engine.parts.units, engine.host, engine.parts.matrices),
            "plan": str(engine.plan),
            "counted": [late - early for early, late in zip(*self.counts.values())],
        }


def train(name, hosts=1):
    """Train on one rank of each host, of which this is one; what came of it here."""
    torch.set_num_threads(1)
    ours = SecondOrder(METHODS[name][0], print_plan=False)
    count = Count(ours)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy=DDPStrategy(timeout=timedelta(seconds=TIMEOUT)) if hosts > 1 else "auto",
        num_nodes=hosts,
        devices=1,
        max_epochs=1,
        callbacks=[ours, count],
        use_distributed_sampler=False,
        **quiet,
    )
    trainer.fit(Module(name), DataLoader(range(SETTLED + COUNTED), batch_size=None))
    return count.facts


def main(out) -> None:
    """One rank, started by torchrun."""
    facts = {name: train(name, int(os.environ["GROUP_WORLD_SIZE"])) for name in METHODS}
    torch.save(facts, Path(out) / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
