"""One point of the scaling curves: the planner's forecast of a model on some ranks, in seconds of a device."""

from functools import partial
from typing import Any

import torch

from benchmarks.scale.models import MODELS, Model, Training
from lightning_so import KFAC, SOAP, Muon
from lightning_so.cli.planning.forecast import Asked, Forecast, forecast
from lightning_so.cli.planning.job import Made
from lightning_so.cli.planning.network import Network
from lightning_so.cli.planning.speeds import Speeds, kinds
from lightning_so.cli.planning.world import World
from lightning_so.core.options import Options
from lightning_so.core.plan.mixture import Mixture

METHODS = {"soap": SOAP(), "muon": Muon(), "kfac": KFAC()}
STRATEGIES = ("ddp", "hsdp", "fsdp")
#: Ranks of a machine.
GPUS = 8


def point(name: str, method: str, strategy: str, ranks: int, device: Speeds, network: Network) -> dict[str, Any]:
    """What a training of some ranks is foretold to take, send and hold.

    Args:
        name: One of `MODELS`.
        method: One of `METHODS`.
        strategy: One of `STRATEGIES`.
        ranks: A power of two.
        device: Speeds of a rank.
        network: What joins machines, and inside them.

    Returns:
        Milliseconds, bytes a step and bytes held, of the rank that has most.
    """
    model, gpus = MODELS[name], min(ranks, GPUS)
    world = World(ranks // gpus, gpus, strategy)
    options = Options(Mixture.of(METHODS[method]))
    asked = Asked(partial(_made, model), name, options, world, torch.device("cuda"), model.batch * model.rows)
    found = forecast(asked)
    own = 3.0 * model.batch * model.products if model.products else float(found.own or 0)
    times = device.timings(found, own, model.batch * model.rows)
    pace = found.timed(times, network)
    solves = [2e3 * cost / device.solves for cost in found.balance()]
    largest = max((2e3 * cost / device.solves for parts in found.engines for cost in kinds(parts)), default=0.0)
    return {
        "model": name,
        "method": method,
        "strategy": strategy,
        "ranks": ranks,
        "own_ms": 1e3 * pace.own,
        "own_alone_ms": 1e3 * sum(each.own for each in times),
        "mean_ms": 1e3 * pace.own * pace.mean,
        "largest_ms": 1e3 * pace.own * pace.largest,
        "jitter": pace.largest / pace.median,
        "exchange_ms": 1e3 * found.waits(pace, times),
        "solves_ms": max(solves),
        "solves_sum_ms": sum(solves),
        "floor_ms": largest,
        "sent": found.sent,
        "memory": _held(found, name, method, strategy, ranks),
    }


#: Under DDP all ranks hold the same, however many there are beyond one.
_HELD: dict[tuple[str, str, bool], dict[str, int]] = {}


def _held(found: Forecast, name: str, method: str, strategy: str, ranks: int) -> dict[str, int]:
    """Bytes by part of the rank that holds most."""
    if strategy != "ddp":
        return found.memory[found.heaviest]
    key = name, method, ranks > 1
    if key not in _HELD:
        _HELD[key] = found.memory[found.heaviest]
    return _HELD[key]


def _made(model: Model) -> Made:
    return Made(Training(model.layers()), None)
