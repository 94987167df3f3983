"""How long pieces of work take on a device, against each other."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

#: Seconds since some fixed moment, when all that was asked of a device before is done.
Clock = Callable[[], float]
#: Rounds that are not counted: a library sets itself up at its first call, and memory is asked for.
WARM, ROUNDS = 2, 5


def waiting_clock(device: torch.device) -> Clock:
    """A clock for work on a device: it waits for the device."""
    if device.type == "cpu":
        return time.perf_counter

    def read() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return read


def name_of(device: torch.device) -> str:
    """What a device is called in files and plans."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def medians(works: Mapping[str, Callable[[], object]], clock: Clock, rounds: int = ROUNDS) -> dict[str, float]:
    """The median seconds of works, which take turns, so that what else a machine does falls on all of them.

    Args:
        works: By name, what is timed. One that raises what torch raises where a device cannot do it is left out.
        clock: See `waiting_clock`.
        rounds: How often each is timed.

    Returns:
        By name, seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(WARM + rounds):
        for name in [*seconds]:
            begun = clock()
            try:
                works[name]()
            except RuntimeError:  # NotImplementedError is one, and so is being out of memory
                del seconds[name]
                continue
            if turn >= WARM:
                seconds[name].append(clock() - begun)
    return {name: median(times) for name, times in seconds.items()}


def faster(seconds: Mapping[str, float], usual: str, least: float) -> str:
    """The fastest of what was timed.

    Args:
        seconds: See `medians`.
        usual: What is taken unless another is well faster.
        least: To which share of its seconds another must come down.

    Returns:
        Its name.
    """
    best = min(seconds, key=lambda name: seconds[name], default=usual)
    return usual if usual in seconds and seconds[best] > least * seconds[usual] else best
