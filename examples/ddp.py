"""Two processes: every solve is done by one rank and sent to the other; the weights stay, to rounding, those of one.

    python -m examples.ddp                # two processes
    python -m examples.ddp --devices 1    # one: the same global batches, the same loss, nothing sent

Lightning starts the second process by running the command again, so that both run everything below. The sampler that it
brings shuffles by the seed and deals out in turn: step k sees the same sixteen windows of text, whoever reads which.
"""

import argparse

import pytorch_lightning as pl
import torch.distributed as dist
from torch.utils.data import DataLoader

from examples.byte_lm import VALIDATION_SEED, ByteLM, Windows, corpus
from lightning_so import SOAP, SecondOrder

CONTEXT = 64
GLOBAL_BATCH = 16


def main() -> None:
    """Train for `--steps` steps; rank 0 prints who solved what, what was sent, and the loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, choices=(1, 2, 4), default=2, help="processes")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()

    pl.seed_everything(0)
    train, held = corpus()
    # The run is about as long as SOAP waits by default (50 steps); it should spend most of it in the rotated basis.
    second_order = SecondOrder(SOAP(start=20))
    trainer = pl.Trainer(
        strategy="ddp",
        devices=args.devices,
        accelerator="cpu",
        max_steps=args.steps,
        callbacks=[second_order],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    per_rank = GLOBAL_BATCH // args.devices
    trainer.fit(
        ByteLM(total_steps=args.steps, warmup=10),
        DataLoader(Windows(train, CONTEXT, GLOBAL_BATCH * args.steps, seed=0), per_rank),
        DataLoader(Windows(held, CONTEXT, GLOBAL_BATCH * 10, VALIDATION_SEED), per_rank),
    )

    engine = second_order.engines[0]
    everyone = [(0, 0)] * args.devices
    # Outside the `if`: every rank has to take part.
    dist.all_gather_object(everyone, (engine.report.solved_here, engine.report.sent))
    if trainer.is_global_zero:
        for rank, (solved, sent) in enumerate(everyone):
            print(f"rank {rank}: {solved} of {engine.report.solves} solves, {sent / 1e6:.2f} MB sent")
        print(f"{engine.report.rotated} blocks rotated, validation loss {trainer.callback_metrics['val_loss']:.4f}")


if __name__ == "__main__":
    main()
