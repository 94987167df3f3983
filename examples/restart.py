"""A training that survives preemption, requeueing and crashes: run it again, and it goes on from its last checkpoint.

    python -m examples.restart --folder runs/a                   # kill -USR1 or kill -TERM it, then run the same line
    python -m examples.restart --folder runs/a --devices 2       # ... on other ranks, with the same global batches
    torchrun --standalone --nproc-per-node 2 --max-restarts 3 --no-python lightning-so doctor -- \
        python -m examples.restart --folder runs/a --devices 2 --every 20
    sbatch configs/slurm/multi_node.sbatch                       # on a cluster
    sbatch --nodes=1-2 configs/slurm/multi_node.sbatch           # ... on as many nodes as are up

What makes a resumed run equal to one that was not stopped: `Restartable` saves between two steps, `SecondOrder` carries
its curvature, and `ResumableLoader` knows its place, counted in samples of all ranks. On more than two ranks DDP must
keep its buckets, too: else it orders them anew after the first step of every start, and sums in that order.
"""

import argparse
import os
from collections.abc import Sequence
from datetime import timedelta

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from examples.byte_lm import ByteLM, Windows, corpus
from lightning_so import SOAP, Restartable, ResumableLoader, SecondOrder

CONTEXT, GLOBAL_BATCH = 64, 16


class Data(pl.LightningDataModule):
    """Windows of text, dealt to the ranks."""

    def __init__(self, steps: int, workers: int = 0) -> None:
        super().__init__()
        self.steps, self.workers = steps, workers

    def train_dataloader(self) -> ResumableLoader:
        """The ranks' parts of the global batches."""
        windows = Windows(corpus()[0], CONTEXT, GLOBAL_BATCH * self.steps, seed=0)
        # The windows are drawn at random already.
        return ResumableLoader(windows, GLOBAL_BATCH, shuffle=False, num_workers=self.workers)


def main(arguments: Sequence[str] | None = None, *callbacks: pl.Callback) -> None:
    """Train up to `--steps`, from the newest checkpoint of `--folder`.

    Args:
        arguments: Of the command line; None for this process's.
        callbacks: More callbacks.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="where checkpoints are, on a disk that all nodes share")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=0, help="steps between two checkpoints without a signal")
    # An elastic torchrun alone knows how many there are this time.
    devices, nodes = (int(os.environ.get(f"{of}_WORLD_SIZE", 1)) for of in ("LOCAL", "GROUP"))
    parser.add_argument("--devices", type=int, default=devices, help="processes of a node; torchrun's, where it starts")
    parser.add_argument("--num-nodes", type=int, default=nodes, help="nodes; torchrun's, where it starts")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that ranks wait for one that is lost")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data, of each rank")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--width", type=int, default=64, help="width of the model")
    args = parser.parse_args(arguments)

    pl.seed_everything(0)
    restartable = Restartable(args.folder, every=args.every)
    # By find_unused_parameters it keeps its buckets.
    ddp = DDPStrategy(find_unused_parameters=True, timeout=timedelta(seconds=args.timeout))
    trainer = pl.Trainer(
        accelerator=args.accelerator,
        strategy=ddp if args.devices * args.num_nodes > 1 else "auto",
        devices=args.devices,
        num_nodes=args.num_nodes,
        precision=args.precision,
        max_steps=args.steps,
        callbacks=[*callbacks, SecondOrder(SOAP(start=20), print_plan=False), restartable],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = ByteLM(d=args.width, total_steps=args.steps, warmup=10)
    if args.precision == "64-true":
        # Lightning would read a checkpoint's weights into float32 ones, and make these float64 afterwards.
        model.double()
    trainer.fit(model, Data(args.steps, args.workers), ckpt_path=restartable.newest(), weights_only=True)
    if trainer.is_global_zero:
        print(f"done: step {trainer.global_step}, training loss {trainer.callback_metrics['train_loss']:.4f}")
        torch.save(model.state_dict(), restartable.folder / "weights.pt")


if __name__ == "__main__":
    main()
