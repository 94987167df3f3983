"""One round: contenders on the same batches, interleaved step by step in one process, each with a rate of its own."""

import gc
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers.contenders import Entry
from benchmarks.shared.lines import rounded, written
from benchmarks.shared.loop import Point
from benchmarks.shared.methods import Contender, Settings
from benchmarks.shared.problems import Batch, Problem
from lightning_so.core.trust.memory import state_bytes

#: Points of a curve beside its start.
POINTS = 20


@dataclass
class Lane:
    """One contender of a round: its model, its curve and the CPU seconds of its steps; why it stopped, if it did."""

    entry: Entry
    rate: float
    model: nn.Module
    contender: Contender
    curve: list[Point]
    seconds: list[float] = field(default_factory=list)
    failed: str | None = None

    @property
    def runs(self) -> bool:
        """Whether it takes more steps."""
        return self.failed is None and math.isfinite(self.curve[-1].loss)


def trained(problem: Problem, entries: list[tuple[Entry, float]], seed: int, steps: int) -> list[dict[str, Any]]:
    """Train contenders at their rates side by side; who goes first changes with every step.

    Returns:
        The figures of each, in their order; of one that failed, what it failed with.
    """
    lanes = [started(problem, entry, rate, seed, steps) for entry, rate in entries]
    generator, every = torch.Generator().manual_seed(seed), max(1, steps // POINTS)
    for number in range(1, steps + 1):
        batch, first = problem.batch(generator), number % len(lanes)
        for lane in lanes[first:] + lanes[:first]:
            if isinstance(lane, Lane) and lane.runs:
                stepped(lane, problem, batch, number % every == 0 or number == steps)
    return [figures(lane) if isinstance(lane, Lane) else {"failed": lane, "final_loss": None} for lane in lanes]


def started(problem: Problem, entry: Entry, rate: float, seed: int, steps: int) -> Lane | str:
    """A contender before its first step, on the model of the seed; of one that cannot be built, why."""
    model = problem.model(seed)
    try:
        contender = entry.contender(model, Settings(rate, steps=steps))
    except Exception as error:  # Whatever a package says: the others go on.
        return f"{type(error).__name__}: {error}"
    if contender.engine is not None:
        contender.engine.stopwatch.clock = time.process_time
    return Lane(entry, rate, model, contender, [Point(0, 0.0, problem.validation(model))])


def stepped(lane: Lane, problem: Problem, batch: Batch, look: bool) -> None:
    """One training step, and the validation loss after it where it is time to look."""
    try:
        step(lane, problem, batch)
    except Exception as error:  # As above.
        lane.failed = f"{type(error).__name__}: {error}"
        return
    if look:
        taken = len(lane.seconds)
        lane.curve.append(Point(taken, sum(lane.seconds), problem.validation(lane.model)))


def step(lane: Lane, problem: Problem, batch: Batch) -> None:
    """Forward, backward, optimizer and schedule, on the clock of the process."""
    engine = lane.contender.engine
    gc.collect(0)  # Of what was left by the others: no part of this one's step.
    begun = time.process_time()
    if engine is not None:
        engine.stopwatch.come_back()
    lane.model.zero_grad()
    with kernels(lane.entry):
        loss = problem.loss(lane.model, batch)
        lane.contender.observe(loss)
        loss.backward(create_graph=lane.entry.twice)
        lane.contender.step()
    lane.contender.advance()
    lane.seconds.append(time.process_time() - begun)
    if engine is not None:
        engine.stopwatch.leave()
    if lane.entry.twice:
        lane.model.zero_grad()  # A gradient with its graph holds itself.


def kernels(entry: Entry) -> AbstractContextManager:
    """Attention that can be differentiated twice where that is asked for: torch's fast ones cannot."""
    return sdpa_kernel(SDPBackend.MATH) if entry.twice else nullcontext()


def figures(lane: Lane) -> dict[str, Any]:
    """What is written of one that has ended."""
    line: dict[str, Any] = {
        "final_loss": None if lane.failed else rounded(lane.curve[-1].loss),
        "cpu_seconds": round(sum(lane.seconds), 3),
        "curve": written(lane.curve),
        "state": round(state(lane), 3),
        **({"failed": lane.failed} if lane.failed else {}),
    }
    if lane.seconds:
        ms = 1e3 * np.array(lane.seconds)
        line["median_ms"], line["p99_ms"] = float(np.median(ms)), float(np.percentile(ms, 99))
        line["largest_ms"], line["largest_step"] = float(ms.max()), int(ms.argmax()) + 1
    return line


def state(lane: Lane) -> float:
    """Bytes of the optimizers' state and of the engine's, over those of the parameters."""
    engine = lane.contender.engine
    ours = 0 if engine is None else state_bytes(engine.parts.units, engine.parts.matrices)
    theirs = held([list(optimizer.state.values()) for optimizer in lane.contender.optimizers], set())
    return (theirs + ours) / sum(p.numel() * p.element_size() for p in lane.model.parameters())


def held(value: Any, seen: set[int]) -> int:
    """Bytes of the tensors inside, each counted once: packages nest them in lists, mappings and objects."""
    if id(value) in seen or isinstance(value, type):
        return 0
    seen.add(id(value))
    if torch.is_tensor(value):
        return value.numel() * value.element_size()
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(held(one, seen) for one in (*inside, *getattr(value, "__dict__", {}).values()))
