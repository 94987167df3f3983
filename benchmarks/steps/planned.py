"""What `lightning-so plan` foretells against what a training holds, sends and takes.

    python -m benchmarks.steps.planned

Four models, SOAP and K-FAC on AdamW, in one process and under DDP on two ranks (gloo). The planner makes no weight for
memory and bytes; seconds are those of forty steps in one process (`--measure`), put on the schedule. Methods have an
interval of 4 steps, which they reach at step 40; the last 16 of 64 steps are compared.

Time is process CPU time on one thread, as in `ddp.py`: of several ranks the slowest, step by step. Exchanges are those
of two gloo processes on this machine, measured before by messages of a few sizes.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel as DDP

from benchmarks.shared.problems import PROBLEMS, Problem, load
from benchmarks.shared.table import append, headed, machine, show
from lightning_so import KFAC, SOAP, attach
from lightning_so.cli.planning.forecast import Asked, Forecast, forecast
from lightning_so.cli.planning.job import Made
from lightning_so.cli.planning.loopback import loopback, neighbours
from lightning_so.cli.planning.measured import trained
from lightning_so.cli.planning.network import Network
from lightning_so.cli.planning.world import World
from lightning_so.core.options import Options
from lightning_so.core.overhead.clock import Clock
from lightning_so.core.overhead.timings import Timings
from lightning_so.core.plan.mixture import Mixture
from lightning_so.core.trust.memory import state_bytes

MODELS = ("byte_lm", "autoencoder", "cnn", "byte_lm_2k")
METHODS = {"soap": SOAP(start=4, period=4), "kfac": KFAC(period=4)}
STEPS, LAST = 64, 16
#: By fact, how far a plan may be off.
ALLOWED = {"memory": 0.05, "sent": 0.05, "step": 0.25, "largest": 0.25}


class Training(pl.LightningModule):
    """A problem as a LightningModule, which gives its own batches."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem, self.model = problem, problem.model(0)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Loss of a batch."""
        return self.problem.loss(self.model, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> Any:
        """Batches of a seed."""
        generator = torch.Generator().manual_seed(0)
        return (self.problem.batch(generator) for _ in range(STEPS))


def world_of(ranks: int, strategy: str) -> World:
    """The ranks; under "hsdp" on two machines."""
    machines = 2 if strategy == "hsdp" else 1
    return World(machines, ranks // machines, strategy)


def forecast_of(name: str, method: str, ranks: int, strategy: str = "ddp") -> tuple[Forecast, list[Timings]]:
    """The forecast of a training, and timings of this machine with other processes at work as there will be."""
    problem = load(name)
    options = Options(Mixture.of(METHODS[method]))
    job = partial(_made, problem)
    found = forecast(Asked(job, name, options, world_of(ranks, strategy), torch.device("cpu")))
    with neighbours(ranks - 1):
        return found, [trained(job, options, torch.device("cpu"), Clock())]


def planned(found: Forecast, times: list[Timings], network: Network) -> dict[str, float]:
    """What the planner says."""
    pace = found.timed(times, network)
    parts = {k: v for k, v in found.memory[0].items() if k not in ("temporary", "buckets of DDP")}
    return {
        "memory": sum(parts.values()),
        "sent": found.sent["curvature"],
        "step": 1e3 * pace.mean * pace.own,
        "largest": 1e3 * pace.largest * pace.own,
        "own": 1e3 * pace.own,
    }


def _made(problem: Problem) -> Made:
    return Made(Training(problem), None)


@dataclass
class Track:
    """What one rank saw: bytes held at the end, and by step bytes sent, milliseconds, and bytes that left its host."""

    memory: int
    sent: np.ndarray
    seconds: np.ndarray
    wire: np.ndarray


def under(strategy: str, model: nn.Module, ranks: int) -> nn.Module:
    """A model as ranks share it."""
    if ranks == 1:
        return model
    if strategy == "ddp":
        return DDP(model)
    world = world_of(ranks, strategy)
    shape = (world.nodes, world.gpus) if strategy == "hsdp" else (ranks,)
    fully_shard(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "pieces")[-len(shape) :]))
    return model


def bytes_here(tensor: torch.Tensor) -> int:
    """Those of a tensor, or of this rank's piece of it."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes


def train(
    rank: int,
    ranks: int,
    meeting: str,
    name: str,
    method: str,
    wire: Callable[[], int] = int,
    strategy: str = "ddp",
) -> Track:
    """Train on one rank; `wire` counts bytes that have left its host."""
    torch.set_num_threads(1)
    if ranks > 1:
        wait = timedelta(minutes=5)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=wait)
    problem = load(name)
    torch.manual_seed(0)
    model = problem.model(0)
    wrapped = under(strategy, model, ranks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = attach(model, optimizer, METHODS[method])
    generator = torch.Generator().manual_seed(rank)
    sent, seconds, wires = [0], [], [wire()]
    for _ in range(STEPS):
        batch = problem.batch(generator)
        begun = time.process_time()
        optimizer.zero_grad()
        loss = problem.loss(wrapped, batch)
        engine.before_backward(loss)
        loss.backward()
        optimizer.step()
        seconds.append(time.process_time() - begun)
        sent.append(engine.host.team.sent)
        wires.append(wire())
    states = [value for state in optimizer.state.values() for value in state.values()]
    memory = state_bytes(engine.parts.units, engine.parts.matrices)
    memory += sum(map(bytes_here, [*model.parameters(), *model.buffers(), *states]))
    memory += sum(bytes_here(p.grad) for p in model.parameters() if p.grad is not None)
    engine.detach()
    if ranks > 1:
        dist.destroy_process_group()
    return Track(memory, np.diff(sent), 1e3 * np.array(seconds), np.diff(wires))


def measured(name: str, method: str, ranks: int) -> dict[str, float]:
    """What a training shows."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(ranks, get_context("spawn")) as pool:
        work = partial(train, ranks=ranks, meeting=f"{folder}/meeting", name=name, method=method)
        tracks = [each.result() for each in [pool.submit(work, rank) for rank in range(ranks)]]
    seconds = np.array([track.seconds[-LAST:] for track in tracks]).max(0)
    return {
        "memory": max(track.memory for track in tracks),
        "sent": max(track.sent[-LAST:].mean() for track in tracks),
        "step": seconds.mean(),
        "largest": seconds.max(),
        "median": float(np.median(seconds)),
    }


def line(name: str, method: str, ranks: int, network: Network) -> dict[str, Any]:
    """One comparison."""
    said, seen = planned(*forecast_of(name, method, ranks), network), measured(name, method, ranks)
    off = {fact: said[fact] / seen[fact] - 1 if seen[fact] else None for fact in ALLOWED}
    cell = {"problem": name, "method": method, "ranks": ranks, "network": asdict(network)}
    return {**cell, "planned": said, "measured": seen, "off": off}


def main() -> None:
    """Compare, append a JSON line a comparison, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(PROBLEMS), default=MODELS)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/steps/results/planned.jsonl"))
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    lines, network = list[dict[str, Any]](), loopback(Clock())
    for each in ((n, m, r) for n in args.models for m in args.methods for r in args.ranks):
        lines.append(line(*each, network))
        append(args.out, [{**lines[-1], **machine("cpu")}])
    heads = ["model", "method", "ranks", *(head for fact in ALLOWED for head in (fact, "planned", "off"))]
    table = headed(
        heads,
        "measured, planned, and how far off",
        "memory MB, sent kB a step, mean and largest step ms of CPU",
        left=2,
    )
    units = {"memory": 1e-6, "sent": 1e-3, "step": 1.0, "largest": 1.0}
    for each in lines:
        cells = []
        for fact, unit in units.items():
            off = each["off"][fact]
            cells += [f"{unit * each[of][fact]:.1f}" for of in ("measured", "planned")]
            cells.append("-" if off is None else f"{100 * off:+.1f} %{'' if abs(off) <= ALLOWED[fact] else ' !'}")
        table.add_row(each["problem"], each["method"], str(each["ranks"]), *cells)
    show(table)


if __name__ == "__main__":
    main()
