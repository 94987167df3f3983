"""Seconds that a step waits for exchanges, with and without overlap: K-FAC under DDP, all variants in one run.

    torchrun --nproc-per-node 2 -m benchmarks.steps.overlap

Steps of the variants are interleaved, each on a model of its own: statistics that leave at the step or beside the
gradients (`ddp_so`), solves that are swapped in at once or a step later (`lag=1`). Over two hosts, start it on each
with `--nnodes 2 --rdzv-endpoint`. Figures are of rank 0, over the second half of the steps.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch.nn.parallel import DistributedDataParallel

from benchmarks.steps.sharded_memory import Equal
from lightning_so import KFAC, attach
from lightning_so.comm.buckets import tell

#: Whether statistics leave early, and the lag.
VARIANTS = {"neither": (False, 0), "statistics": (True, 0), "solves": (False, 1), "both": (True, 1)}


class Training:
    """One variant: a model, its engine, and what its steps took."""

    def __init__(self, args: argparse.Namespace, early: bool, lag: int) -> None:
        """Set it up."""
        torch.manual_seed(0)
        self.model = Equal(args.blocks, args.width)
        self.wrapped = DistributedDataParallel(self.model, bucket_cap_mb=args.bucket_mb)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.engine = attach(self.model, self.optimizer, KFAC(period=args.period), lag=lag)
        self.waits, self.steps = list[float](), list[float]()
        listeners: list[Any] = [self.engine.gradients_ready] if early else []
        tell(self.wrapped, lambda: listeners)

    def step(self, x: torch.Tensor) -> None:
        """Take one step, from a moment at which all ranks are here."""
        dist.barrier()
        begin, waited = time.perf_counter(), self.engine.host.team.seconds
        loss = (self.wrapped(x) - x.roll(1, 1)).square().sum(1).mean()
        self.engine.before_backward(loss)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.waits.append(self.engine.host.team.seconds - waited)
        self.steps.append(time.perf_counter() - begin)


def main() -> None:
    """Measure, print a table, append a JSON line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--blocks", type=int, default=6)
    add("--width", type=int, default=384)
    add("--batch", type=int, default=512, help="of a rank")
    add("--period", type=int, default=8)
    add("--steps", type=int, default=96)
    add("--bucket-mb", type=int, default=1, help="of DDP's gradients")
    add("--network", default="this machine", help="what to call it")
    add("--out", type=Path, default=Path("benchmarks/steps/results/overlap.jsonl"), help="lines are appended")
    args = parser.parse_args()

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    trainings = {name: Training(args, *variant) for name, variant in VARIANTS.items()}
    for number in range(args.steps):
        x = torch.randn(args.batch, args.width, generator=torch.Generator().manual_seed(number * 100 + rank))
        for training in trainings.values():
            training.step(x)
    if rank == 0:
        report(args, trainings)
    dist.destroy_process_group()


def report(args: argparse.Namespace, trainings: dict[str, Training]) -> None:
    """Print and write what was measured."""
    table = Table(title=f"milliseconds a step, K-FAC, {args.blocks} of {args.width} x {args.width}, {args.network}")
    for head in ("overlapped", "mean wait", "largest wait", "mean step", "median step", "largest step"):
        table.add_column(head, justify="left" if head == "overlapped" else "right")
    with args.out.open("a") as file:
        for name, training in trainings.items():
            waits, steps = (torch.tensor(t[len(t) // 2 :]) * 1e3 for t in (training.waits, training.steps))
            found = {
                "mean_wait_ms": waits.mean().item(),
                "largest_wait_ms": waits.max().item(),
                "mean_step_ms": steps.mean().item(),
                "median_step_ms": steps.median().item(),
                "largest_step_ms": steps.max().item(),
            }
            table.add_row(name, *(f"{value:.1f}" for value in found.values()))
            facts = {"overlapped": name, "network": args.network, "ranks": dist.get_world_size()}
            sizes = {"blocks": args.blocks, "width": args.width, "batch": args.batch, "period": args.period}
            print(json.dumps({**facts, **sizes, "steps": args.steps, **found}), file=file)
    Console(width=120).print(table)
    print(f"results: {args.out}")


if __name__ == "__main__":
    main()
