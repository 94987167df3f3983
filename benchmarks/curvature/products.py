"""Which curvature-vector products work where, how exact they are and what they cost: a small transformer, one process
and two gloo ranks.

    python -m benchmarks.curvature.products

Errors are relative to float64 on one process, for a random direction: to the Hessian's product by double backward, to
the Gauss-Newton matrix's by itself. Costs are in gradient evaluations (forward and backward passes) for each product
after the first: counted for differences, in CPU time for the others. What fails says what torch says. Lines are
appended to the results, and docs/products.md is written from the latest of each kind.
"""

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from benchmarks.curvature.products_page import BACKENDS, SETTINGS, page, read, table
from lightning_so.linalg.products import STEPS, DoubleBackward, FiniteDifference, GaussNewton
from lightning_so.probe.parameters import ParameterVector

WIDTH, LENGTH, BATCH, VOCABULARY = 32, 16, 8, 50
#: Times that a cost in CPU time is the least of.
REPEATS = 5


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


def of_outputs(outputs: Tensor, tokens: Tensor) -> Tensor:
    """The mean loss of the next tokens."""
    return nn.functional.cross_entropy(outputs.flatten(0, 1), tokens[:, 1:].flatten())


def loss_of(model: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """The same, of a model."""
    return of_outputs(model(tokens[:, :-1]), tokens)


def graphed(backend: str, model: Any, tokens: Tensor, params: list[Tensor]) -> Any:
    """Products that differentiate the graph of a loss."""
    if backend == "double backward":
        return DoubleBackward(lambda: loss_of(model, tokens), params)
    return GaussNewton(model(tokens[:, :-1]), partial(of_outputs, tokens=tokens), params)


def exact(backend: str, tokens: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The weights, and the product in float64 for each of some batches."""
    torch.manual_seed(0)
    model = Model("eager")
    weights = copy.deepcopy(model.state_dict())
    model.double()
    params = list(model.parameters())
    v = ParameterVector.of(model.named_parameters(), model).space.normal(0).float().double()
    kind = "gauss-newton" if backend == "gauss-newton" else "double backward"
    return weights, [graphed(kind, model, some, params)(v) for some in tokens]


def wrapped(model: "Model", setting: str, ranks: int) -> tuple[Any, Any]:
    """The model as a user has it in this setting, and DeepSpeed's engine where there is one."""
    if setting == "compile":
        return torch.compile(model, backend="aot_eager"), None
    if setting == "ddp":
        return DistributedDataParallel(model), None
    if setting == "fsdp2":
        for part in (*model.blocks, model):
            fully_shard(part, mesh=init_device_mesh("cpu", (ranks,)))
    if setting.startswith("zero"):
        from tests.support.access_ranks import deepspeed

        config = {
            "train_micro_batch_size_per_gpu": BATCH // ranks,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": int(setting[-1]), "stage3_param_persistence_threshold": 0},
        }
        optimizer = torch.optim.AdamW(model.parameters())
        engine, *_ = deepspeed().initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        return engine, engine
    return model, None


def measure(rank: int, ranks: int, meeting: str, setting: str, backend: str) -> dict[str, Any]:
    """Error and cost on one rank."""
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", f"file://{meeting}", timedelta(seconds=30), ranks, rank)
    tokens = batch()[rank::ranks]
    # Where ranks have whole weights, that of this rank's samples shows what is silently of them alone.
    weights, (expected, alone) = exact(backend, [batch(), tokens])
    model = Model(setting)
    model.load_state_dict(weights)
    called, engine = wrapped(model, setting, ranks)
    whole = ParameterVector.of(model.named_parameters(), called, engine)
    space, half = whole.space, setting == "bf16 autocast"
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=half)

    def outputs(x: Tensor) -> Tensor:
        with autocast():
            return called(x)

    def loss() -> Tensor:
        # Differences go around DeepSpeed's engine, as in a Trainer.
        with autocast():
            return loss_of(called if engine is None else model, tokens)

    gradient, v = partial(whole.gradient, loss), space.normal(0)
    try:
        if backend.endswith("difference"):
            step = STEPS[torch.bfloat16 if half else torch.float32]
            product: Any = FiniteDifference(whole.weights, gradient, space, step, backend.startswith("central"))
            with whole.forward.kept():
                found, first = product(v), product.calls
                product(v)
            cost = float(product.calls - first)
        else:
            product = graphed(backend, outputs, tokens, whole.params)
            found = product(v)
            cost = seconds(lambda: product(v)) / seconds(gradient)
    except Exception as error:  # Whatever torch and DeepSpeed say.
        return {"error": None, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}

    def error(of: Tensor) -> float:
        parts = zip(of.split([piece.whole for piece in space.pieces]), space.pieces, strict=True)
        mine = torch.cat([part[piece.first : piece.first + piece.count] for part, piece in parts])
        return space.norm((found.double() - mine).to(v)) / float(expected.norm())

    return {"error": error(expected), "of_this_rank": error(alone), "gradients": cost}


def seconds(function: Callable[[], Any]) -> float:
    """CPU seconds, the least of some."""
    times = []
    for _ in range(REPEATS):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def run(setting: str, backend: str) -> dict[str, Any]:
    """Measure in processes of its own."""
    ranks = 2 if setting in ("ddp", "fsdp2") or setting.startswith("zero") else 1
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(measure, n, ranks, f"{folder}/meeting", setting, backend) for n in range(ranks)]
            return next(future.result() for future in futures)


def main() -> None:
    """Measure, append JSON lines, print a table and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--settings", choices=SETTINGS, nargs="*", default=list(SETTINGS), help="none: write the page alone")
    add("--out", type=Path, default=Path("benchmarks/curvature/results/products.jsonl"), help="lines are appended")
    add("--page", type=Path, default=Path("docs/products.md"), help="the page that is written")
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    for setting in args.settings:
        for backend in BACKENDS:
            found = {"setting": setting, "backend": backend, "torch": torch.__version__, **run(setting, backend)}
            with args.out.open("a") as file:
                print(json.dumps(found), file=file)
            print(json.dumps(found), file=sys.stderr)
    lines = read(args.out)
    Console(width=None if sys.stdout.isatty() else 160).print(table(lines))
    args.page.write_text(page(lines))
    print(f"results: {args.out}, {args.page}")


if __name__ == "__main__":
    main()
