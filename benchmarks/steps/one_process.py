"""What a step costs: every variant in one process, interleaved step by step, on the same batches.

    python -m benchmarks.steps.one_process --problem byte_lm --steps 200 --repeats 3

The whole is done `--repeats` times, identically, and a step's time is the least of its repeats: that leaves the spikes
that belong to the method (solves, the first ones included) and drops those of the machine. `adamw` runs twice; the
difference of the two is the noise. Times are process CPU time of one thread. Variants in bf16 are slow on a CPU without
bf16 units. On an accelerator (`--device cuda`) they are wall time between synchronizations, and `step_bytes` is what a
step needs beyond what is there before it: activations, gradients and work space. `--seconds` ends it early, all
variants after the same step. One that fails is named, and the others go on; the exit code tells.
"""

import argparse
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
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


def lane(problem: Problem, variant: str, settings: Settings, bf16: bool, rounds: list[Any]) -> Lane:
    """A variant before its first step: its model is that of every other; see `repeat_choices` for its rounds."""
    model, (method, *options) = problem.model(0), variant.split(":")
    chosen = replace(settings, options=tuple(option(text) for text in options))
    autocast = torch.autocast(problem.device, torch.bfloat16, enabled=bf16)
    made = Lane(model, build(method, model, chosen), clock(problem.device), autocast)
    repeat_choices(made, rounds)
    return made


def repeat(
    problem: Problem,
    variants: list[str],
    settings: Settings,
    rounds: dict[str, list[Any]],
    bf16: bool = False,
    until: float = math.inf,
) -> list[Lane | str]:
    """All variants side by side; who goes first changes with every step.

    Args:
        problem: What is trained.
        variants: Who trains it.
        settings: How, for `settings.steps` steps.
        rounds: What those with `max_overhead` have measured, by variant; see `repeat_choices`.
        bf16: Whether the passes are under an autocast.
        until: The time of `time.monotonic` after which no step begins, but for the first two.

    Returns:
        The lanes, or of a variant that failed what it failed with.
    """
    found: list[Lane | str] = [
        tried(partial(lane, problem, variant, settings, bf16, rounds[variant])) for variant in variants
    ]
    generator = torch.Generator().manual_seed(0)
    for i in range(settings.steps):
        if i >= 2 and time.monotonic() > until:
            break
        batch = problem.batch(generator)
        for at in (*range(i % len(found), len(found)), *range(i % len(found))):
            if isinstance(one := found[at], Lane):
                found[at] = tried(partial(step, one, problem, batch), one)
    return found


def tried(work: Callable[[], Any], one: Lane | None = None) -> Any:
    """What some work gives, or the lane that it was done to; where it fails, with what."""
    try:
        found = work()
    except Exception as error:  # Being out of memory, or what a method refuses: the others go on.
        return f"{type(error).__name__}: {error}"
    return found if one is None else one


def measure(
    problem: Problem,
    variants: list[str],
    settings: Settings,
    repeats: int,
    bf16: bool = False,
    seconds: float = math.inf,
) -> list[dict[str, Any]]:
    """One record a variant, from the elementwise least over the repeats; of one that failed, why."""
    begun, rounds = time.monotonic(), defaultdict[str, list[Any]](list)
    ends = [begun + seconds * (r + 1) / repeats for r in range(repeats)]
    runs = [repeat(problem, variants, settings, rounds, bf16, end) for end in ends]
    records = []
    for i, variant in enumerate(variants):
        lanes = [run[i] for run in runs]
        good = [one for one in lanes if isinstance(one, Lane)]
        failed = next((one for one in lanes if isinstance(one, str)), None)
        records.append(record(problem, variant, good) if failed is None else {"variant": variant, "failed": failed})
    return records


def record(problem: Problem, variant: str, lanes: list[Lane]) -> dict[str, Any]:
    """The figures of one variant, in milliseconds and bytes, and its validation loss at the end."""
    made = min(len(lane.parts[PARTS[0]]) for lane in lanes)
    parts_RSP = 1e3 * np.array([[lane.parts[part][:made] for part in PARTS] for lane in lanes]).transpose(0, 2, 1)
    with lanes[0].autocast:
        loss = problem.validation(lanes[0].model) if problem.held else None
    return {"variant": variant, "made": made, "loss": loss, **memory(lanes[0]), **distribution(parts_RSP)}


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
        "ways": "" if engine is None else engine.plan.ways,
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
    heads = [
        "variant",
        "median ms",
        "p99",
        "largest",
        "at step",
        "largest/median",
        "median x",
        "mean x",
        "state",
        "loss",
    ]
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
            "-" if r.get("loss") is None else f"{r['loss']:.4g}",
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
    add("--batch-size", type=int, help="default: the problem's own")
    add("--seconds", type=float, default=math.inf, help="no step begins after them")
    add("--device", default="cpu", help="cpu or cuda")
    add("--bf16", action="store_true", help="forward and backward passes under bf16 autocast")
    add("--run", help="what the lines of one run have in common")
    add("--out", type=Path, help="default: benchmarks/steps/results/one_process_PROBLEM.jsonl; lines are appended")
    args = parser.parse_args()

    torch.set_num_threads(1)
    settings, problem = Settings(args.lr, steps=args.steps), load(args.problem, args.device, args.batch_size)
    records = measure(problem, args.variants, settings, args.repeats, args.bf16, args.seconds)
    good = [r for r in records if "failed" not in r]
    if good:
        title = f"{args.problem}, {good[0]['made']} steps, least of {args.repeats} repeats"
        show(whole_table(good, title), parts_table(good))
        print("\n".join(f"{r['variant']}: {r['ways']}" for r in good if r["ways"]))

    out = args.out or Path(f"benchmarks/steps/results/one_process_{args.problem}.jsonl")
    asked = {name: getattr(args, name) for name in ("problem", "batch_size", "steps", "repeats", "lr", "bf16")}
    facts = {**asked, **({} if args.run is None else {"run": args.run}), **machine(args.device)}
    append(out, ({**facts, **r} for r in records))
    if len(good) < len(records):
        sys.exit("\n".join(f"{r['variant']} failed: {r['failed']}" for r in records if "failed" in r))


if __name__ == "__main__":
    main()
