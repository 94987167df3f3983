"""Whether watching takes more and more memory: resident megabytes of a long small training, one JSON line a run.

python -m benchmarks.watching.memory --steps 20000
"""

import argparse
import gc
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.shared.table import machine
from lightning_so import SOAP, CurvatureMonitor, Recorder, SecondOrder

OUT = Path("benchmarks/watching/results/memory.jsonl")


def resident() -> float:
    """Megabytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Small(pl.LightningModule):
    """Three layers on random numbers, so that the watchers are most of what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Squared error of a sine."""
        x = torch.randn(16, 8)
        return (self.net(x) - x[:, :1].sin()).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Look(pl.Callback):
    """Notes the memory at some steps."""

    def __init__(self, steps: set[int]) -> None:
        self.steps, self.seen = steps, dict[int, float]()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Note it, without what is only waiting to be collected."""
        if trainer.global_step in self.steps:
            gc.collect()
            self.seen[trainer.global_step] = round(resident(), 1)


def main() -> None:
    """Train with everything that watches, and append a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    look = Look({args.steps * part // 10 for part in (1, 2, 5, 8, 10)})
    with TemporaryDirectory() as folder:
        watchers = [SecondOrder(SOAP(), print_plan=False, recorder=Recorder(root=folder)), CurvatureMonitor()]
        trainer = pl.Trainer(
            max_steps=args.steps,
            callbacks=[*watchers, look],
            logger=False,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Small(), DataLoader(range(args.steps), batch_size=1))
        size = next(Path(folder).rglob("*.gz")).stat().st_size
    line = {"steps": args.steps, "megabytes": look.seen, "file_bytes": size, **machine("cpu")}
    with args.out.open("a") as file:
        print(json.dumps(line), file=file)
    print(line)


if __name__ == "__main__":
    main()
