"""Memory of curvature on each rank under FSDP2, on 1, 2, 4 gloo ranks: a model of equal blocks, one thread a rank.

    python -m benchmarks.steps.sharded_memory --ranks 1 2 4

What the engine holds is counted between two steps, in its parts, and right before the optimizer steps, when what layers
have shown since the last one is there too. Figures are of the rank that holds most.
"""

import argparse
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from benchmarks.shared.ranks import on_ranks
from lightning_so import EKFAC, KFAC, SOAP, Muon, Shampoo, attach
from lightning_so.contract.memory import held
from lightning_so.core.trust.memory import state_bytes

METHODS = {
    "soap": (SOAP(start=8, period=8), torch.optim.AdamW),
    "kfac": (KFAC(period=8), torch.optim.AdamW),
    "kfac_sgd": (KFAC(period=8), torch.optim.SGD),
    "ekfac": (EKFAC(start=8, period=8), torch.optim.AdamW),
    "shampoo": (Shampoo(period=8), torch.optim.AdamW),
    "muon": (Muon(), torch.optim.AdamW),
}
PARTS = ("curvature", "saved", "work space", "whole", "largest")


class Equal(nn.Module):
    """Residual layers of one width."""

    def __init__(self, blocks: int, width: int) -> None:
        """Make them."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add them up."""
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


def measure(rank: int, ranks: int, meeting: str, name: str, blocks: int, width: int, steps: int) -> dict[str, int]:
    """Bytes on one rank."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, (method, base) = Equal(blocks, width), METHODS[name]
    if ranks > 1:
        dist.init_process_group("gloo", f"file://{meeting}", timedelta(minutes=5), ranks, rank)
        mesh = init_device_mesh("cpu", (ranks,))
        for layer in (*model.layers, model):
            fully_shard(layer, mesh=mesh)
    optimizer = base(model.parameters(), lr=1e-3)
    engine, largest = attach(model, optimizer, method), 0
    for step in range(steps):
        x = torch.randn(64, width, generator=torch.Generator().manual_seed(step))[rank::ranks]
        loss = (model(x) - x.roll(1, 1)).square().sum(1).mean()
        engine.before_backward(loss)
        loss.backward()
        largest = max(largest, state_bytes(engine.parts.units, engine.parts.matrices))
        optimizer.step()
        optimizer.zero_grad()
        largest = max(largest, state_bytes(engine.parts.units, engine.parts.matrices))
    curvature = [tensor for stack in engine.stacks for tensor in held(stack.stats) if not tensor.is_meta]
    found = {
        "curvature": sum(tensor.nbytes for tensor in curvature),
        "saved": sum(stack.hidden.nbytes for stack in engine.stacks),
        "work space": engine.parts.matrices.scratch.nbytes(),
        "whole": state_bytes(engine.parts.units, engine.parts.matrices),
        "largest": largest,
    }
    engine.detach()
    if ranks > 1:
        dist.destroy_process_group()
    return found


def worst(ranks: int, *arguments: Any) -> dict[str, int]:
    """By part, the bytes of the rank that holds most."""
    found = on_ranks(ranks, measure, *arguments)
    return {part: max(of_rank[part] for of_rank in found) for part in PARTS}


def main() -> None:
    """Measure, print a table, append a JSON line a method and number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[1, 2, 4])
    add("--methods", choices=list(METHODS), nargs="+", default=["soap", "kfac"])
    add("--blocks", type=int, default=8)
    add("--width", type=int, default=128)
    add("--steps", type=int, default=24)
    add("--out", type=Path, default=Path("benchmarks/steps/results/sharded_memory.jsonl"), help="lines are appended")
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    table = Table(title=f"MB on the rank that holds most, {args.blocks} matrices of {args.width} x {args.width}")
    for head in ("method", "ranks", *PARTS):
        table.add_column(head, justify="left" if head == "method" else "right")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        for name in args.methods:
            for ranks in args.ranks:
                found = worst(ranks, name, args.blocks, args.width, args.steps)
                table.add_row(name, str(ranks), *(f"{found[part] / 1e6:.3f}" for part in PARTS))
                facts = {"method": name, "ranks": ranks, "blocks": args.blocks, "width": args.width}
                print(json.dumps({**facts, "steps": args.steps, "torch": torch.__version__, **found}), file=file)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"results: {args.out}")


if __name__ == "__main__":
    main()
