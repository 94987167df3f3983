"""What a step costs and sends under DDP: `benchmarks.steps.one_process` with several gloo ranks, one thread each.

    python -m benchmarks.steps.ddp --ranks 2 --repeats 5

Every rank takes its strided part of the same global batch. Wall time says little where ranks share cores with each
other and with whatever else runs, so a step's time is process CPU time (gloo waits without using any): the slowest
rank's of each part, summed over the parts, because ranks wait for each other in the backward pass, the guard and the
solves. That is a step with a core for each rank and a free wire, or a little more. Then, as in `one_process.py`, the
least of identical repeats, which keeps the spikes of the method, first solves included.

The last table has what this leaves out: wall time, and the bytes that the engine sends against `core.trust.traffic`,
which predicts them for the largest interval (32 steps for SOAP(), reached at step 320; then they are "settled").
"""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.table import Table
from torch.nn.parallel import DistributedDataParallel as DDP

from benchmarks.shared.methods import METHODS, Settings, build
from benchmarks.shared.problems import PROBLEMS, Problem, load
from benchmarks.shared.table import append, headed, machine, show
from benchmarks.steps.one_process import PARTS, Lane, distribution, memory, parts_table, step, whole_table
from lightning_so.core.trust.traffic import traffic

VARIANTS = ["adamw", "adamw", "soap", "muon"]


@dataclass
class Track:
    """What one rank measured of one variant in one repeat.

    Attributes:
        parts_SP: Milliseconds of CPU of each part of each step.
        wall_S: Milliseconds of each step, all ranks having begun together.
        sent_S: Bytes that the engine sent in each step.
        every_S: The schedule's interval at each step.
        facts: What is the same in every repeat.
    """

    parts_SP: np.ndarray
    wall_S: np.ndarray
    sent_S: np.ndarray
    every_S: np.ndarray
    facts: dict[str, Any]


def measure(
    rank: int, ranks: int, meeting: str, name: str, variants: list[str], settings: Settings, repeats: int
) -> list[list[Track]]:
    """One rank's tracks, by repeat and variant."""
    torch.set_num_threads(1)
    wait = timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=wait)
    problem, tracks = load(name), []
    for number in range(repeats):
        tracks.append(repeat(problem, variants, settings, rank, ranks))
        if rank == 0:
            print(f"repeat {number + 1} of {repeats}", file=sys.stderr, flush=True)
    dist.destroy_process_group()
    return tracks


def repeat(problem: Problem, variants: list[str], settings: Settings, rank: int, ranks: int) -> list[Track]:
    """All variants side by side; who goes first changes with every step, for all ranks alike."""
    lanes = []
    for variant in variants:
        model = problem.model(0)
        contender = build(variant, model, settings)
        lanes.append(Lane(DDP(model), contender, time.process_time))
    generator = torch.Generator().manual_seed(0)
    for i in range(settings.steps):
        inputs, targets = problem.batch(generator)
        mine = inputs[rank::ranks], targets[rank::ranks]
        first = i % len(lanes)
        for lane in lanes[first:] + lanes[:first]:
            dist.barrier()
            begun = time.perf_counter()
            step(lane, problem, mine)
            lane.parts["wall"].append(time.perf_counter() - begun)
            engine = lane.contender.engine
            lane.parts["sent"].append(0 if engine is None else engine.host.team.sent)
            lane.parts["every"].append(0 if engine is None else max(engine.parts.units.schedule.every, default=0))
    found = [track(lane) for lane in lanes]
    for lane in lanes:
        if lane.contender.engine is not None:
            lane.contender.engine.detach()
    return found


def track(lane: Lane) -> Track:
    """The lane's times in milliseconds, its bytes, and the bytes of its gradients."""
    engine, parts = lane.contender.engine, lane.parts
    facts = {
        **memory(lane),
        "interval": 0 if engine is None else engine.parts.units.schedule.cycle,
        "predicted_bytes": 0.0 if engine is None else traffic(engine.parts.units, engine.host, engine.parts.matrices),
        "gradient_bytes": sum(p.numel() * p.element_size() for p in lane.model.parameters()),
    }
    return Track(
        1e3 * np.array([parts[part] for part in PARTS]).T,
        1e3 * np.array(parts["wall"]),
        np.diff(parts["sent"], prepend=0),
        np.array(parts["every"]),
        facts,
    )


def record(variant: str, tracks: list[list[Track]]) -> dict[str, Any]:
    """The figures of one variant from its tracks, by rank and repeat."""
    slowest_RSP = np.array([[each.parts_SP for each in rank] for rank in tracks]).max(0)
    wall_S = np.array([[each.wall_S for each in rank] for rank in tracks]).max(0).min(0)
    one = tracks[0][0]
    return {
        "variant": variant,
        **one.facts,
        **sent(one),
        "wall_median_ms": float(np.median(wall_S)),
        "wall_mean_ms": wall_S.mean(),
        "wall_largest_ms": wall_S.max(),
        "wall_largest_step": int(wall_S.argmax()) + 1,
        **distribution(slowest_RSP),
        "wall_step_ms": np.round(wall_S, 3).tolist(),
        "sent_bytes": one.sent_S.tolist(),
    }


def sent(track: Track) -> dict[str, Any]:
    """Bytes a step over the whole run, in the largest step, and in whole intervals at the largest interval."""
    interval = track.facts["interval"]
    settled = int((track.every_S == interval).sum()) // interval * interval if interval else 0
    return {
        "sent_mean_bytes": float(track.sent_S.mean()),
        "sent_largest_bytes": int(track.sent_S.max()),
        "settled_steps": settled,
        "sent_settled_bytes": float(track.sent_S[-settled:].mean()) if settled else None,
    }


def wire_table(records: list[dict[str, Any]]) -> Table:
    """Wall time, and bytes that a rank sends beside DDP's gradients."""
    heads = ["variant", "wall median ms", "largest", "largest/median", "bytes: mean", "largest", "settled", "predicted"]
    title = "wall time, and bytes a step that a rank sends"
    table = headed([*heads, "DDP's gradients"], title, "settled: at the largest interval")
    for r in records:
        settled = "-" if r["sent_settled_bytes"] is None else f"{r['sent_settled_bytes']:,.0f}"
        table.add_row(
            r["variant"],
            f"{r['wall_median_ms']:.2f}",
            f"{r['wall_largest_ms']:.2f}",
            f"{r['wall_largest_ms'] / r['wall_median_ms']:.2f}",
            f"{r['sent_mean_bytes']:,.0f}",
            f"{r['sent_largest_bytes']:,}",
            settled,
            f"{r['predicted_bytes']:,.0f}",
            f"{r['gradient_bytes']:,}",
        )
    return table


def main() -> None:
    """Measure on all ranks, print the tables, append a JSON line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ranks", type=int, default=2)
    add("--problem", choices=list(PROBLEMS), default="byte_lm")
    add("--variants", choices=list(METHODS), nargs="+", default=VARIANTS, help="the first is what ratios refer to")
    add("--steps", type=int, default=400)
    add("--repeats", type=int, default=5)
    add("--lr", type=float, default=3e-3)
    add("--out", type=Path, default=Path("benchmarks/steps/results/ddp.jsonl"), help="lines are appended")
    args = parser.parse_args()

    # Read by the OpenMP runtime when a rank starts: set_num_threads alone would come after the pool of threads.
    os.environ["OMP_NUM_THREADS"] = "1"
    settings = Settings(args.lr, steps=args.steps)
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(args.ranks, mp_context=get_context("spawn")) as pool,
    ):
        common = args.ranks, f"{folder}/meeting", args.problem, args.variants, settings, args.repeats
        futures = [pool.submit(measure, rank, *common) for rank in range(args.ranks)]
        tracks = [future.result() for future in futures]
    records = [
        record(variant, [[run[i] for run in rank] for rank in tracks]) for i, variant in enumerate(args.variants)
    ]

    title = f"{args.problem} on {args.ranks} ranks, {args.steps} steps, CPU, least of {args.repeats} repeats"
    show(whole_table(records, title), parts_table(records), wire_table(records))
    facts = {name: getattr(args, name) for name in ("problem", "ranks", "steps", "repeats", "lr")}
    torch.set_num_threads(1)
    append(args.out, ({**facts, **machine("cpu"), **r} for r in records))


if __name__ == "__main__":
    main()
