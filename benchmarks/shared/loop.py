"""The loop of the benchmarks that train: steps of a contender on a problem, and the validation loss now and then."""

import math
import time
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.shared.methods import Contender
from benchmarks.shared.problems import Problem


class Point(NamedTuple):
    """A validation: the steps and the process CPU seconds of training before it, and the loss."""

    step: int
    seconds: float
    loss: float


def trained(
    problem: Problem,
    model: nn.Module,
    contender: Contender,
    seed: int,
    steps: int,
    every: int,
    reduction: str = "mean",
) -> list[Point]:
    """Train a model on batches of a seed; a loss that is not finite ends it early.

    Seconds are of training steps (forward, backward, optimizer, schedule): validation and the drawing of batches are
    left out.
    """
    if contender.engine is not None:
        contender.engine.stopwatch.clock = time.process_time

    generator = torch.Generator().manual_seed(seed)
    seconds, curve = 0.0, [Point(0, 0.0, problem.validation(model))]
    for step in range(1, steps + 1):
        batch = problem.batch(generator)
        begun = time.process_time()
        model.zero_grad()
        loss = problem.loss(model, batch, reduction)
        contender.observe(loss)
        loss.backward()
        contender.step()
        contender.advance()
        seconds += time.process_time() - begun
        if step % every == 0 or step == steps:
            curve.append(Point(step, seconds, problem.validation(model)))
            if not math.isfinite(curve[-1].loss):
                break
    return curve


def stage_seconds(engine: Any) -> dict[str, float]:
    """Seconds of each stage of the engine, empty where there is none."""
    return {} if engine is None else engine.stopwatch.seconds
