"""How long parts of a step take on this machine: of a short training, or of single products and solves."""

import time
import warnings
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import cycle, islice
from typing import Any

import torch

from lightning_so.cli.planning.forecast import Asked, Forecast
from lightning_so.cli.planning.job import Job, Made
from lightning_so.cli.planning.loopback import neighbours
from lightning_so.cli.planning.pieces import pieces
from lightning_so.cli.planning.speeds import kinds
from lightning_so.cli.planning.weightless import optimizers, quiet
from lightning_so.contract.method import Method
from lightning_so.core.attach.attach import Attached
from lightning_so.core.host import Host
from lightning_so.core.options import Options
from lightning_so.core.overhead.clock import Clock, CudaClock
from lightning_so.core.overhead.meter import Meter
from lightning_so.core.overhead.timings import Timings, timings
from lightning_so.core.plan.recommended import recommended
from lightning_so.errors import ConfigError

#: Steps that are made, those of them that are not counted, and batches that they are made on.
STEPS, WARM, BATCHES = 40, 10, 8
#: Step at which blocks may rotate: what is to be known is how long steps are then.
START = 2
#: Seconds after which no further step is made.
LONGEST = 60.0


class WallClock(Clock):
    """Wall time: what a step takes of a day, with all threads at work."""

    def moment(self) -> Any:
        """See `Clock.moment`."""
        return time.perf_counter()


def timings_of(asked: Asked, found: Forecast) -> tuple[list[Timings], str, str]:
    """Time a training on this machine; single pieces of it, where it has no data or does not fit here.

    Args:
        asked: What the plan is for.
        found: Its forecast.

    Returns:
        The timings, one an optimizer; how they came about; and why not by steps of the training, where they did not.

    Raises:
        ConfigError: If this machine has no such device, or nothing can be timed.
    """
    cuda = torch.cuda.is_available()
    if asked.device.type == "cuda" and not cuda:
        raise ConfigError(
            "--measure times this machine's device, a CPU, and the plan is for GPUs: run it on a machine that has one, "
            "or plan for --accelerator=cpu."
        )
    beside = asked.world.gpus - 1 if asked.device.type == "cpu" else 0
    try:
        with neighbours(beside):
            return [trained(asked.job, asked.options, asked.device)], f"by {STEPS} steps on this machine", ""
    except ConfigError as error:
        if asked.tokens is None or found.own is None:
            raise
        why = str(error)
    share = found.own / len(found.engines)
    rest = zip(found.engines, found.alone, strict=True)
    found_of = [pieces(parts, share, steady, asked.tokens, asked.device) for parts, steady in rest]
    return found_of, "by single products and solves on this machine", why


def trained(job: Job, options: Options, device: torch.device, clock: Clock | None = None) -> Timings:
    """Train for some steps on this machine, and take the medians.

    Args:
        job: Makes the training, with numbers.
        options: How SecondOrder is asked to work.
        device: Where.
        clock: By what is timed; None for wall time.

    Returns:
        The timings.

    Raises:
        ConfigError: If there are no data, or the module steps by itself.
    """
    with quiet():
        made = job()
    module = made.module.to(device)
    if not module.automatic_optimization:
        raise ConfigError(
            f"--measure: {type(module).__name__} steps by itself (automatic_optimization=False), so that its step "
            "cannot be timed here: leave --measure out, and train with Recorder() for --against."
        )
    found = optimizers(made)
    if len(found) > 1:
        raise ConfigError(f"--measure: {type(module).__name__} has {len(found)} optimizers: leave --measure out.")
    data = [_moved(batch, device) for batch in islice(batches(made), BATCHES)]
    host = Host.of(module, found[0])
    mixture = (options.mixture or recommended(host.base)).each(_early)
    engine = Attached(host, replace(options, mixture=mixture, overhead=None))
    meter = Meter(clock or (CudaClock(device) if device.type == "cuda" else WallClock()))
    engine.stopwatch = meter
    engine.arm()
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, of logging without a Trainer.
        for number, batch in enumerate(islice(cycle(data), STEPS)):
            _step(module, found[0], engine, meter, batch, number)
            if time.perf_counter() - begun > LONGEST and number > WARM + 2:
                break
    laps = [*meter.laps][WARM:]
    costs = kinds(engine.parts)
    engine.detach()
    # Of the first steps, at which most is solved, solves count too.
    first = timings([*meter.laps] or laps, len(costs), 1) if meter.laps else None
    return timings(laps, len(costs), 1).completed(first, costs)


def _step(module: Any, optimizer: Any, engine: Attached, meter: Meter, batch: Any, number: int) -> None:
    optimizer.zero_grad()
    loss = module.training_step(batch, number)
    loss = loss["loss"] if isinstance(loss, dict) else loss
    engine.before_backward(loss)
    loss.backward()
    watched = max((recorder.share for recorder in engine.recorders), default=0.0)
    optimizer.step()
    meter.watched(watched)


def batches(made: Made) -> Iterator[Any]:
    """Batches of the training's own data.

    Args:
        made: The training.

    Yields:
        One after the other.

    Raises:
        ConfigError: If there are none.
    """
    source = made.data or made.module
    if made.data is not None:
        made.data.prepare_data()
        made.data.setup("fit")
    try:
        loader = source.train_dataloader()
    except Exception as error:
        raise ConfigError(
            f"--measure needs a batch, and {type(source).__name__}.train_dataloader() gives none "
            f"({type(error).__name__}): plan from a configuration with data, or give --tokens to have pieces of a "
            "step timed."
        ) from error
    yield from loader


def _moved(batch: Any, device: torch.device) -> Any:
    from torch.utils._pytree import tree_map

    return tree_map(lambda each: each.to(device) if isinstance(each, torch.Tensor) else each, batch)


def _early(method: Method) -> Method:
    """A method that lets blocks rotate as soon as they can."""
    waits = is_dataclass(method) and "start" in {each.name for each in fields(method)}
    return replace(method, start=min(START, method.start)) if waits else method  # type: ignore[type-var]
