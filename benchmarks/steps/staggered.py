"""Step time over two hosts at 1 Gbit/s: solves and exchanges of SOAP staggered, against all on one step (the burst).

    python -m benchmarks.steps.staggered     # as root: makes two hosts of network namespaces, one gloo rank on each

Under DDP, byte LM; the variants are interleaved step by step, and their order turns. A step is wall time, from a moment
at which both ranks are here to the moment at which the later one is done. The whole is done `--repeats` times,
identically, and a step's time is the least of its repeats, which leaves the spikes that belong to the method. The
schedule is told that the training is old, so that intervals are at their largest from the start; counted are the steps
after two of them.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch.nn.parallel import DistributedDataParallel

from benchmarks.shared.methods import Settings, adamw
from benchmarks.shared.problems import Problem, load
from benchmarks.shared.table import machine
from lightning_so import SOAP, Staggered, Synchronous, attach
from lightning_so.core.trust.traffic import traffic
from tests.cluster.hosts import joined, lacking

#: How solves are spread, and the lag; AdamW alone, twice, shows what the machine does.
VARIANTS: dict[str, tuple[Any, int]] = {
    "AdamW": (None, 0),
    "AdamW again": (None, 0),
    "burst": (Synchronous(), 0),
    "staggered": (Staggered(), 0),
    "burst, lag=1": (Synchronous(), 1),
    "staggered, lag=1": (Staggered(), 1),
}
PORT = 29500


class Lane:
    """One variant: a model, its engine, and what its steps took and sent."""

    def __init__(self, problem: Problem, spread: Any, lag: int, args: argparse.Namespace) -> None:
        """Set it up."""
        self.model = problem.model(0)
        self.wrapped = DistributedDataParallel(self.model)
        (self.optimizer,) = adamw(self.model, Settings(args.lr))["optimizers"]
        soap = SOAP(start=args.period // 2, period=args.period, cap=args.cap, schedule=spread or Staggered())
        self.engine = attach(self.model, self.optimizer, soap, lag=lag) if spread else None
        if self.engine is not None:
            self.engine.parts.units.schedule.origin = -10 * args.period
        self.seconds, self.sent = list[float](), list[int]()

    def step(self, problem: Problem, batch: Any) -> None:
        """Take one step, from a moment at which all ranks are here to one at which the last is done."""
        dist.barrier()
        begin = time.perf_counter()
        problem.loss(self.wrapped, batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        dist.barrier()
        self.seconds.append(time.perf_counter() - begin)
        self.sent.append(0 if self.engine is None else self.engine.report.sent)


def rank(args: argparse.Namespace) -> None:
    """One rank: for every repeat and variant, the milliseconds and bytes of its counted steps, and the plan's bytes."""
    torch.set_num_threads(1)
    meeting, number = f"tcp://{args.meet}:{PORT}", args.rank
    dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=2, timeout=timedelta(minutes=5))
    problem, found = load(args.problem), []
    for repeat in range(args.repeats):
        lanes = [Lane(problem, *variant, args) for variant in VARIANTS.values()]
        generator = torch.Generator().manual_seed(0)
        for step in range(args.settled + args.steps):
            batch = tuple(part[number::2] for part in problem.batch(generator))
            first = step % len(lanes)
            for lane in lanes[first:] + lanes[:first]:
                lane.step(problem, batch)
        found.append([tracked(lane, args.settled) for lane in lanes])
        if number == 0:
            print(f"repeat {repeat + 1} of {args.repeats}", file=sys.stderr, flush=True)
    Path(args.tracks, f"rank{number}").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


def tracked(lane: Lane, settled: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Milliseconds and bytes of the counted steps, and the plan's bytes a step."""
    planned = 0.0
    if lane.engine is not None:
        planned = traffic(lane.engine.parts.units, lane.engine.host, lane.engine.parts.matrices)
        lane.engine.detach()
    return 1e3 * np.array(lane.seconds[settled:]), np.diff(lane.sent)[settled - 1 :], planned


def launched(args: argparse.Namespace) -> list[Any]:
    """What the ranks have found, by rank."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    with joined(2, args.rate) as hosts, tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, "-m", "benchmarks.steps.staggered", *sys.argv[1:], "--tracks", folder]
        program += ["--meet", hosts[0].address]
        ranks = [
            subprocess.Popen(host.command(*program, "--rank", str(host.number)), env=environment) for host in hosts
        ]
        if any([process.wait() for process in ranks]):
            raise SystemExit("a rank has failed: see above")
        return [pickle.loads(Path(folder, f"rank{number}").read_bytes()) for number in range(2)]


def records(tracks: list[Any]) -> Iterator[dict[str, Any]]:
    """The figures of every variant; a step is as long as it was for the later rank."""
    for number, variant in enumerate(VARIANTS):
        times_RS = np.array([[repeat[number][0] for repeat in one] for one in tracks]).max(0)
        alone_R = times_RS.max(1) / np.median(times_RS, 1)
        least_S, sent_S = times_RS.min(0), tracks[0][0][number][1]
        yield {
            "variant": variant,
            "median_ms": float(np.median(least_S)),
            "mean_ms": float(least_S.mean()),
            "largest_ms": float(least_S.max()),
            "largest_over_median": float(least_S.max() / np.median(least_S)),
            "largest_over_median_of_repeats": np.sort(alone_R).round(3).tolist(),
            "sent_mean_bytes": float(sent_S.mean()),
            "sent_largest_bytes": int(sent_S.max()),
            "planned_bytes": tracks[0][0][number][2],
            "step_ms": least_S.round(2).tolist(),
        }


def table(found: list[dict[str, Any]], title: str) -> Table:
    """Milliseconds, and what one rank sends beside DDP's gradients."""
    caption = "of repeats: the same ratio in single repeats, smallest to largest; kB a step beside DDP's gradients"
    made = Table(title=title, caption=caption)
    heads = ["variant", "median ms", "mean", "largest", "largest/median", "of repeats", "kB: plan", "mean", "largest"]
    for index, head in enumerate(heads):
        made.add_column(head, justify="right" if index else "left")
    for r in found:
        single = r["largest_over_median_of_repeats"]
        numbers = (f"{r[key]:.1f}" for key in ("median_ms", "mean_ms", "largest_ms"))
        sizes = (f"{r[key] / 1e3:.1f}" for key in ("planned_bytes", "sent_mean_bytes", "sent_largest_bytes"))
        ratio, spread = f"{r['largest_over_median']:.2f}", f"{single[0]:.2f} - {single[-1]:.2f}"
        made.add_row(r["variant"], *numbers, ratio, spread, *sizes)
    return made


def main() -> None:
    """Measure, print a table, append a JSON line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--problem", default="byte_lm")
    add("--rate", default="1gbit", help="of every cable, as tc writes it")
    add("--period", type=int, default=16, help="a power of two")
    add("--cap", type=int, help="largest tile of a side; SOAP's own by default")
    add("--steps", type=int, default=32, help="that are counted")
    add("--repeats", type=int, default=4)
    add("--lr", type=float, default=3e-3)
    add("--out", type=Path, default=Path("benchmarks/steps/results/staggered_1gbit.jsonl"), help="lines are appended")
    for name in ("--rank", "--meet", "--tracks"):
        add(name, type=int if name == "--rank" else str, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.settled = 2 * args.period
    if args.rank is not None:
        return rank(args)
    if reason := lacking():
        raise SystemExit(f"no hosts: {reason}")

    load_before, begin = os.getloadavg()[0], time.perf_counter()
    found = list(records(launched(args)))
    title = f"SOAP(period={args.period}), {args.problem}, 2 hosts at {args.rate}, least of {args.repeats} repeats"
    Console(width=140).print(table(found, title))
    loads = {"load_before": load_before, "load_after": os.getloadavg()[0], "seconds": time.perf_counter() - begin}
    print(f"load of the machine {loads['load_before']:.1f} before, {loads['load_after']:.1f} after")
    facts = {name: getattr(args, name) for name in ("problem", "rate", "period", "cap", "steps", "repeats", "lr")}
    with args.out.open("a") as file:
        for r in found:
            print(json.dumps({**facts, **machine("cpu"), **loads, **r}), file=file)
    print(f"results: {args.out}")
    return None


if __name__ == "__main__":
    main()
