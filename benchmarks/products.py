"""Which curvature-vector products work where, how exact they are and what they cost: a small transformer, one process
and two gloo ranks.

    python -m benchmarks.products

Errors are relative to double backward in float64 on one process, for a random direction; costs are in gradient
evaluations (forward and backward passes), counted. What fails says what torch says.
"""

import argparse
import copy
import json
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lightning_so.comm import access_of, ambient
from lightning_so.core.whole import space_of
from lightning_so.linalg.products import STEPS, DoubleBackward, FiniteDifference

SETTINGS = ("eager", "sdpa", "checkpoint", "checkpoint reentrant", "compile", "bf16 autocast", "ddp", "fsdp2")
BACKENDS = ("double backward", "forward difference", "central difference")
WIDTH, LENGTH, BATCH, VOCABULARY = 32, 16, 8, 50


class Block(nn.Module):
    """Attention and two layers behind it."""

    def __init__(self, sdpa: bool) -> None:
        """Make them."""
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        wide = 4 * WIDTH
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, wide), nn.GELU(), nn.Linear(wide, WIDTH))
        self.sdpa = sdpa

    def forward(self, x: Tensor) -> Tensor:
        """Causal attention of four heads."""
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        if self.sdpa:
            found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
            scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
            found = scores.softmax(-1) @ v
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Model(nn.Module):
    """Two blocks between an embedding and a head."""

    def __init__(self, setting: str) -> None:
        """Make them."""
        super().__init__()
        self.words, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.blocks = nn.ModuleList(Block(sdpa=setting == "sdpa") for _ in range(2))
        self.setting = setting

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.words(x)
        for block in self.blocks:
            if self.setting.startswith("checkpoint"):
                x = checkpoint(block, x, use_reentrant=self.setting.endswith("reentrant"))
            else:
                x = block(x)
        return self.head(x)


def batch() -> Tensor:
    """Tokens of a global batch."""
    return torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(1))


def exact() -> tuple[dict[str, Tensor], Tensor]:
    """The weights, and H v in float64."""
    torch.manual_seed(0)
    model = Model("eager")
    weights = copy.deepcopy(model.state_dict())
    model.double()
    tokens = batch()
    space = space_of(list(model.named_parameters()), access_of(model.parameters()), ambient(sharded=False))
    product = DoubleBackward(lambda: loss_of(model, tokens), list(model.parameters()))
    return weights, product(space.normal(0).float().double())


def loss_of(model: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """The mean loss of the next tokens."""
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def measure(rank: int, ranks: int, meeting: str, setting: str, backend: str) -> dict[str, Any]:
    """Error and cost on one rank."""
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", f"file://{meeting}", timedelta(minutes=2), ranks, rank)
    weights, expected = exact()
    model = Model(setting)
    model.load_state_dict(weights)
    called: Any = model
    if setting == "compile":
        called = torch.compile(model, backend="aot_eager")
    if setting == "ddp":
        called = DistributedDataParallel(model)
    if setting == "fsdp2":
        for part in (*model.blocks, model):
            fully_shard(part, mesh=init_device_mesh("cpu", (ranks,)))
    named = list(model.named_parameters())
    params = [param for _, param in named]
    access, tokens = access_of(params), batch()[rank::ranks]
    space = space_of(named, access, ambient(sharded=access.sharded))
    half = setting == "bf16 autocast"

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return loss_of(called, tokens)

    def gradient() -> Tensor:
        for param in params:
            param.grad = None
        loss().backward()
        grads = [access.grad(param) for param in params]
        return torch.cat([grad.reshape(-1) for grad in grads if grad is not None])

    v = space.normal(0)
    calls: float | str
    try:
        if backend == "double backward":
            found, calls = DoubleBackward(loss, params)(v), "-"
        else:
            step = STEPS[torch.bfloat16 if half else torch.float32]
            product = FiniteDifference(
                [access.weight(p) for p in params], gradient, space, step, backend.startswith("central")
            )
            found, calls = product(v), product.calls
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        return {"error": None, "why": str(error).splitlines()[0][:90]}
    parts = expected.split([piece.whole for piece in space.pieces])
    pieces = zip(parts, space.pieces, strict=True)
    mine = torch.cat([part[piece.first : piece.first + piece.count] for part, piece in pieces])
    apart = space.norm((found.double() - mine).float()) / float(expected.norm())
    return {"error": apart, "calls": calls}


def run(setting: str, backend: str) -> dict[str, Any]:
    """Measure in processes of its own."""
    ranks = 2 if setting in ("ddp", "fsdp2") else 1
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(measure, n, ranks, f"{folder}/meeting", setting, backend) for n in range(ranks)]
            return next(future.result() for future in futures)


def main() -> None:
    """Measure, print a table, append JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--settings", choices=SETTINGS, nargs="+", default=list(SETTINGS))
    add("--out", type=Path, default=Path("benchmarks/results/products.jsonl"), help="lines are appended")
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    table = Table(title="relative error of H v to float64 (gradients)")
    for head in ("setting", *BACKENDS):
        table.add_column(head)
    with args.out.open("a") as file:
        for setting in args.settings:
            cells = []
            for backend in BACKENDS:
                found = run(setting, backend)
                told = found["why"] if found["error"] is None else f"{found['error']:.1e} ({found['calls']})"
                cells.append(told)
                facts = {"setting": setting, "backend": backend, "torch": torch.__version__}
                print(json.dumps({**facts, **found}), file=file)
            table.add_row(setting, *cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(f"results: {args.out}")


if __name__ == "__main__":
    main()
