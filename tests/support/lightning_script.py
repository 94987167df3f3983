"""A training in a real Trainer, for subprocess tests: python -m tests.support.lightning_script strategy devices out."""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_so import SOAP, SecondOrder
from tests.support.problems import Net, batch


class GlobalBatches(Dataset):
    """Every item is the global batch of a step; each rank takes its strided part in the training step."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return batch(index, torch.float64)


class Module(pl.LightningModule):
    """Net in float64."""

    def __init__(self, out):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.out = Net(torch.float64), out

    def training_step(self, data, index):
        x, y = (part[self.global_rank :: self.trainer.world_size] for part in data)
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def on_train_end(self):
        ours = next(callback for callback in self.trainer.callbacks if isinstance(callback, SecondOrder))
        report = ours.engines[0].report
        facts = {"weights": self.net.state_dict(), "solves": report.solves, "here": report.solved_here}
        torch.save(facts, Path(self.out) / f"rank{self.global_rank}.pt")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main(strategy, devices, out):
    torch.set_num_threads(1)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy=strategy,
        devices=int(devices),
        max_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[SecondOrder(SOAP(start=10, period=4))],
    )
    trainer.fit(Module(out), DataLoader(GlobalBatches(), batch_size=None))


if __name__ == "__main__":
    main(*sys.argv[1:])
