"""What `Memory(share=...)` saves and costs under DDP, on 2 and 4 gloo ranks: equal matrices, one thread a rank.

    python -m benchmarks.steps.memory_share --ranks 2 4 --shares 1 .5 0

Bytes of curvature between two steps are of the rank that holds most; bytes that a rank sends beside DDP's gradients,
and CPU time (gloo waits without using any) of the slowest rank, are means over the last two cycles of the schedule, all
intervals being at their largest.
"""

import argparse
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from benchmarks.shared.ranks import on_ranks
from benchmarks.shared.table import append, headed, machine, show
from benchmarks.steps.sharded_memory import METHODS, Equal
from lightning_so import Memory, attach
from lightning_so.core.trust.memory import curvature_bytes
from lightning_so.core.trust.traffic import traffic

FIGURES = ("curvature", "sent", "predicted", "cpu_ms")


def measure(rank: int, ranks: int, meeting: str, name: str, share: float, blocks: int, width: int) -> dict[str, float]:
    """Figures of one rank."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", f"file://{meeting}", timedelta(minutes=5), ranks, rank)
    module, (method, base) = Equal(blocks, width), METHODS[name]
    model, optimizer = DDP(module), base(module.parameters(), lr=1e-3)
    engine = attach(module, optimizer, method, memory=Memory(share=share))
    parts, sent, times = engine.parts, list[int](), list[float]()
    cycle = parts.units.schedule.cycle
    for step in range(12 * cycle + 2 * cycle):  # Slots are settled two cycles after the interval has grown.
        x = torch.randn(64, width, generator=torch.Generator().manual_seed(step))[rank::ranks]
        begun = time.process_time()
        loss = (model(x) - x.roll(1, 1)).square().sum(1).mean()
        engine.before_backward(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - begun)
        sent.append(engine.host.team.sent)
    found = {
        "curvature": curvature_bytes(parts.units),
        "sent": (sent[-1] - sent[-1 - 2 * cycle]) / (2 * cycle),
        "predicted": traffic(parts.units, parts.host, parts.matrices),
        "cpu_ms": 1e3 * sum(times[-2 * cycle :]) / (2 * cycle),
    }
    engine.detach()
    dist.destroy_process_group()
    return found


def worst(ranks: int, *how: object) -> dict[str, float]:
    """The largest figure of any rank."""
    found = on_ranks(ranks, measure, *how)
    return {figure: max(of_rank[figure] for of_rank in found) for figure in FIGURES}


def main() -> None:
    """Measure, print a table, append a JSON line a method, number of ranks and share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[2, 4])
    add("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.0])
    add("--methods", choices=list(METHODS), nargs="+", default=["soap", "kfac"])
    add("--blocks", type=int, default=8)
    add("--width", type=int, default=256)
    add("--out", type=Path, default=Path("benchmarks/steps/results/memory_share.jsonl"), help="lines are appended")
    args = parser.parse_args()

    # Read by the OpenMP runtime when a rank starts: set_num_threads alone would come after the pool of threads.
    os.environ["OMP_NUM_THREADS"] = "1"
    heads = ["method", "ranks", "share", "curvature MB", "sent kB a step", "predicted", "CPU ms a step"]
    table, lines = headed(heads, f"under DDP, {args.blocks} matrices of {args.width} x {args.width}"), []
    for name in args.methods:
        for ranks in args.ranks:
            for share in args.shares:
                found = worst(ranks, name, share, args.blocks, args.width)
                sizes = [f"{found['curvature'] / 1e6:.2f}", *(f"{found[f] / 1e3:.0f}" for f in ("sent", "predicted"))]
                table.add_row(name, str(ranks), f"{share:g}", *sizes, f"{found['cpu_ms']:.1f}")
                facts = {"method": name, "ranks": ranks, "share": share, "blocks": args.blocks, "width": args.width}
                lines.append({**facts, **found, **machine("cpu")})
    show(table)
    append(args.out, lines)


if __name__ == "__main__":
    main()
