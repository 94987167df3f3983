"""What ranks exchange in a training: its own gradients and weights, and what second order adds at each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from lightning_so.cli.planning.network import BUCKET, Network
from lightning_so.cli.planning.steps import Steps
from lightning_so.cli.planning.world import World
from lightning_so.comm.supposed import Supposed
from lightning_so.core.assembly import Parts
from lightning_so.core.host import Host
from lightning_so.core.trust.exchanges import Exchange
from lightning_so.core.trust.traffic import exchanges


@dataclass(frozen=True)
class Exchanged:
    """What the rank that sends most exchanges.

    Attributes:
        world: The ranks.
        own: The training's own exchanges of a step, by what travels.
        ours: By optimizer and step, those of second order.
        tensors: How many gradients there are.
        size: Bytes of the gradients.
    """

    world: World
    own: dict[str, Exchange]
    ours: list[list[list[Exchange]]]
    tensors: int
    size: float

    @classmethod
    def of(
        cls, world: World, engines: Sequence[Parts], schedules: Sequence[Steps], senders: Sequence[int]
    ) -> "Exchanged":
        """Those of a training.

        Args:
            world: The ranks.
            engines: The parts of rank 0.
            schedules: Their steps.
            senders: The ranks that are looked at.

        Returns:
            The exchanges.
        """
        by_rank = [
            [_ours(parts, steps, rank) for parts, steps in zip(engines, schedules, strict=True)] for rank in senders
        ]
        most = max(by_rank, key=lambda of_rank: sum(map(mean_bytes, of_rank)))
        hosts = [parts.host for parts in engines]
        size = float(sum(param.nbytes for host in hosts for param in host.params))
        return cls(world, own_exchanges(world, size), most, sum(len(host.params) for host in hosts), size)

    def seconds(self, network: Network, own: float) -> float:
        """How long the training's own step is, given that of one rank."""
        ranks = self.world.ranks
        copied = network.wrapped(self.world.strategy, self.tensors, self.size) if ranks > 1 else 0.0
        return network.own(own, self.own.values(), ranks, copied)

    def bytes(self) -> dict[str, float]:
        """By what travels, bytes that a rank hands over at a mean step."""
        return {"curvature": sum(map(mean_bytes, self.ours))} | {what: each.size for what, each in self.own.items()}


def mean_bytes(steps: Sequence[Sequence[Exchange]]) -> float:
    """Bytes of a mean step."""
    return sum(each.size for step in steps for each in step) / len(steps)


def _ours(parts: Parts, steps: Steps, rank: int) -> list[list[Exchange]]:
    there = Supposed(rank, parts.host.team.ranks)
    host: Host = replace(parts.host, world=there, team=there)
    due = [list(chain.from_iterable(by_rank.values())) for by_rank in steps.solves]
    return exchanges(parts.units, host, parts.matrices, due, steps.watched)


def own_exchanges(world: World, size: float) -> dict[str, Exchange]:
    """The training's own at each step, by what travels.

    Args:
        world: The ranks.
        size: Bytes of the gradients.

    Returns:
        Nothing of one rank.
    """
    if world.ranks == 1:
        return {}
    calls = math.ceil(size / BUCKET)
    if world.strategy == "hsdp":
        return {
            "gradients (the training's own)": Exchange("reduce_scatter", calls, size, "machine"),
            "gradients across machines (the training's own)": Exchange(
                "all_reduce", calls, size / world.gpus, "across"
            ),
            "weights (the training's own)": Exchange("all_gather", 2 * calls, 2 * size / world.gpus, "machine"),
        }
    kind = "all_reduce" if world.strategy in ("ddp", "zero_1") else "reduce_scatter"
    # Under ZeRO and FSDP weights come together for a forward and a backward pass, or once after the step.
    gathers = {"ddp": 0, "fsdp": 2, "zero_3": 2}.get(world.strategy, 1)
    weights = Exchange("all_gather", gathers * calls, gathers * size / world.ranks)
    return {"gradients (the training's own)": Exchange(kind, calls, size)} | (
        {"weights (the training's own)": weights} if gathers else {}
    )
