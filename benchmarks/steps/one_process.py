"""What a step costs: every variant in one process, interleaved step by step, on the same batches.

    python -m benchmarks.steps.one_process --problem byte_lm --steps 200 --repeats 3

The whole is done `--repeats` times, identically, and a step's time is the least of its repeats: that leaves the spikes
that belong to the method (solves, the first ones included) and drops those of the machine. `adamw` runs twice; the
difference of the two is the noise. Times are process CPU time of one thread. Variants in bf16 are slow on a CPU without
bf16 units. On an accelerator (`--device cuda`) they are wall time between synchronizations, and `step_bytes` is what a
step needs beyond what is there before it: activations, gradients and work space.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import nn

from benchmarks.shared.methods import Contender, Settings, build, option
from benchmarks.shared.problems import PROBLEMS, Batch, Problem, load
from benchmarks.shared.table import append, headed, machine, show
from lightning_so.core.trust.memory import state_bytes

VARIANTS = ["adamw", "adamw", "soap", "muon", "muon_bf16", "torch_muon", "torch_muon_fp32"]
STAGES = ["guard", "watch", "observe", "solve", "act", "finish"]
PARTS = ["forward_backward", "base", *STAGES]


@dataclass
class Lane:
    """One variant in one repeat: its own model, its optimizer, and the seconds of each part of each step."""

    model: nn.Module
    contender: Contender
    clock: Callable[[], float]
    autocast: AbstractContextManager = field(default_factory=nullcontext)
    step_bytes: int = 0
    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def clock(device: str) -> Callable[[], float]:
    """Process CPU time, or wall time between synchronizations of an accelerator."""
    if device == "cpu":
        return time.process_time

    def synchronized() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return synchronized


def step(lane: Lane, problem: Problem, batch: Batch) -> None:
    """One training step; what the optimizer's time holds beyond the engine's stages is the base's."""
    engine = lane.contender.engine
    stages: dict[str, float] = {}
    if engine is not None:
        engine.stopwatch.clock, engine.stopwatch.seconds = lane.clock, stages
        engine.stopwatch.come_back()
    lane.model.zero_grad()
    there = allocated(problem.device)
    begun = lane.clock()
    with lane.autocast:
        loss = problem.loss(lane.model, batch)
    loss.backward()
    differentiated = lane.clock()
    lane.contender.step()
    done = lane.clock()
    lane.step_bytes = max(lane.step_bytes, allocated(problem.device, most=True) - there)
    lane.parts["forward_backward"].append(differentiated - begun)
    lane.parts["base"].append(done - differentiated - sum(stages.values()))
    for stage in STAGES:
        lane.parts[stage].append(stages.get(stage, 0.0))
    lane.contender.advance()
    if engine is not None:
        engine.stopwatch.leave()  # What other lanes do is no part of its step.


def allocated(device: str, most: bool = False) -> int:
    """Bytes in use on an accelerator, or the most since this was last asked; 0 on a CPU."""
    if device == "cpu":
        return 0
    found = torch.cuda.max_memory_allocated() if most else torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return found


def repeat_choices(lane: Lane, rounds: list[Any]) -> None:
    """Have a lane with `max_overhead` measure in the first repeat, and take the same timings in the others.

    Args:
        lane: The lane.
        rounds: Timings of each round; filled by the first repeat.
    """
    overhead = None if lane.contender.engine is None else lane.contender.engine.parts.overhead
    if overhead is None:
        return
    lane.contender.engine.tell = print
    measure, known = overhead.agree, iter(rounds[:])

    def agree() -> Any:
        found = next(known, None)
        if found is None:
            found = measure()
            rounds.append(found)
        return found

    overhead.agree = agree


def repeat(
    problem: Problem, variants: list[str], settings: Settings, rounds: dict[str, list[Any]], bf16: bool = False
) -> list[Lane]:
    """All variants side by side for `settings.steps` steps; who goes first changes with every step."""
    lanes = []
    for variant in variants:
        model, (method, *options) = problem.model(0), variant.split(":")
        chosen = replace(settings, options=tuple(option(text) for text in options))
        autocast = torch.autocast(problem.device, torch.bfloat16, enabled=bf16)
        lanes.append(Lane(model, build(method, model, chosen), clock(problem.device), autocast))
        repeat_choices(lanes[-1], rounds[variant])
    generator = torch.Generator().manual_seed(0)
    for i in range(settings.steps):
        batch = problem.batch(generator)
        first = i % len(lanes)
        for lane in lanes[first:] + lanes[:first]:
            step(lane, problem, batch)
    return lanes


def measure(
    problem: Problem, variants: list[str], settings: Settings, repeats: int, bf16: bool = False
) -> list[dict[str, Any]]:
    """One record a variant, from the elementwise least over the repeats."""
    rounds: dict[str, list[Any]] = defaultdict(list)
    runs = [repeat(problem, variants, settings, rounds, bf16) for _ in range(repeats)]
    return [record(variant, [run[i] for run in runs]) for i, variant in enumerate(variants)]


def record(variant: str, lanes: list[Lane]) -> dict[str, Any]:
    """The figures of one variant, in milliseconds and bytes."""
    parts_RSP = 1e3 * np.array([[lane.parts[part] for part in PARTS] for lane in lanes]).transpose(0, 2, 1)
    return {"variant": variant, **memory(lanes[0]), **distribution(parts_RSP)}


def memory(lane: Lane) -> dict[str, Any]:
    """State in bytes per parameter byte, and what the engine counted."""
    engine, contender = lane.contender.engine, lane.contender
    parameter_bytes = sum(p.numel() * p.element_size() for p in lane.model.parameters())
    return {
        "optimizer_bytes": contender.optimizer_bytes() / parameter_bytes,
        "engine_bytes": 0.0
        if engine is None
        else state_bytes(engine.parts.units, engine.parts.matrices) / parameter_bytes,
        "step_bytes": lane.step_bytes / parameter_bytes,
        "counters": contender.counters(),
    }


def distribution(parts_RSP: np.ndarray) -> dict[str, Any]:
    """How long steps take, from the milliseconds of every part of every step of every repeat."""
    whole_S = parts_RSP.sum(2).min(0)
    return {
        "mean_ms": whole_S.mean(),
        "median_ms": float(np.median(whole_S)),
        "p99_ms": float(np.percentile(whole_S, 99)),
        "largest_ms": whole_S.max(),
        "largest_step": int(whole_S.argmax()) + 1,
        "parts_ms": dict(zip(PARTS, parts_RSP.min(0).mean(0).tolist(), strict=True)),
        "step_ms": np.round(whole_S, 3).tolist(),
    }


def whole_table(records: list[dict[str, Any]], title: str) -> Table:
    """The whole step: its distribution, its ratio to AdamW's, the memory."""
    base = records[0]
    heads = ["variant", "median ms", "p99", "largest", "at step", "largest/median", "median x", "mean x", "state"]
    table = headed(heads, title, "ratios to the first row; state is bytes per parameter byte, optimizer's + ours")
    for r in records:
        table.add_row(
            r["variant"],
            f"{r['median_ms']:.2f}",
            f"{r['p99_ms']:.2f}",
            f"{r['largest_ms']:.2f}",
            str(r["largest_step"]),
            f"{r['largest_ms'] / r['median_ms']:.2f}",
            f"{r['median_ms'] / base['median_ms']:.3f}",
            f"{r['mean_ms'] / base['mean_ms']:.3f}",
            f"{r['optimizer_bytes']:.2f} + {r['engine_bytes']:.2f}",
        )
    return table


def parts_table(records: list[dict[str, Any]]) -> Table:
    """Mean milliseconds of each part of a step."""
    table = headed([head.replace("_", "-") for head in ("variant", *PARTS)], "mean ms of each part")
    for r in records:
        table.add_row(r["variant"], *(f"{r['parts_ms'][part]:.2f}" for part in PARTS))
    return table


def main() -> None:
    """Measure, print both tables, append a JSON line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--problem", choices=list(PROBLEMS), default="byte_lm")
    add("--variants", nargs="+", default=VARIANTS, help="kfac or kfac:cap=256:period=10; ratios refer to the first")
    add("--steps", type=int, default=200)
    add("--repeats", type=int, default=3)
    add("--lr", type=float, default=3e-3)
    add("--device", default="cpu", help="cpu or cuda")
    add("--bf16", action="store_true", help="forward and backward passes under bf16 autocast")
    add("--out", type=Path, help="default: benchmarks/steps/results/one_process_PROBLEM.jsonl; lines are appended")
    args = parser.parse_args()

    torch.set_num_threads(1)
    settings = Settings(args.lr, steps=args.steps)
    records = measure(load(args.problem, args.device), args.variants, settings, args.repeats, args.bf16)
    title = f"{args.problem}, {args.steps} steps, least of {args.repeats} repeats"
    show(whole_table(records, title), parts_table(records))

    out = args.out or Path(f"benchmarks/steps/results/one_process_{args.problem}.jsonl")
    facts = {
        "problem": args.problem,
        "steps": args.steps,
        "repeats": args.repeats,
        "lr": args.lr,
        "bf16": args.bf16,
        **machine(args.device),
    }
    append(out, ({**facts, **r} for r in records))


if __name__ == "__main__":
    main()
