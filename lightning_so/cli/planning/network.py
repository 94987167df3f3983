"""How long ranks exchange: for each kind of exchange a latency, and bytes over a bandwidth."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lightning_so.core.trust.exchanges import Exchange
from lightning_so.errors import ConfigError

#: Bytes of a bucket of DDP, and of what FSDP and ZeRO bring together at once.
BUCKET = 25e6
#: Of the training's own step, the part after which gradients begin to travel: its forward pass.
FORWARD = 1 / 3


@dataclass(frozen=True)
class Network:
    """What joins the ranks.

    Attributes:
        bandwidth: Bytes a second that a rank sends while it receives as many.
        latency: Seconds of one hop of an exchange without bytes; an exchange has log2(ranks) of them.
        wrapper: Seconds that DDP takes for a tensor, and for a byte, beside the exchange itself.
        sharding: Those that FSDP2 takes, its optimizer's step with them.
        overlaps: Whether the training's own exchanges travel while its backward pass computes.
        windows: Bytes a second of windows of rows, which are packed, summed at their owners and unpacked there; None
            for `bandwidth`.
        inside: What joins the ranks of one machine, where it is something else.
        machine: Ranks of one machine; 0 where nobody asks.
    """

    bandwidth: float
    latency: float
    wrapper: tuple[float, float] = (0.0, 0.0)
    sharding: tuple[float, float] = (0.0, 0.0)
    overlaps: bool = True
    windows: float | None = None
    inside: "Network | None" = None
    machine: int = 0

    def seconds(self, exchanges: Iterable[Exchange], ranks: int) -> float:
        """How long some exchanges take, one after the other.

        Args:
            exchanges: What a rank hands over.
            ranks: How many there are.

        Returns:
            `calls * latency * ceil(log2(ranks)) + carried * size / bandwidth`, summed; see `carried`.
        """
        return sum(self._seconds(each, ranks) for each in exchanges)

    def _seconds(self, exchange: Exchange, ranks: int) -> float:
        near = min(ranks, self.machine or ranks)
        ranks = {"all": ranks, "machine": near, "across": ranks // near}[exchange.among]
        if ranks == 1:
            return 0.0
        link = self.inside if self.inside is not None and ranks <= near and exchange.among != "across" else self
        speed = (link.windows if exchange.kind == "reduce" else None) or link.bandwidth
        carry = carried(exchange.kind, ranks) * exchange.size / speed
        return exchange.calls * link.latency * math.ceil(math.log2(ranks)) + carry

    def own(self, step: float, exchanges: Iterable[Exchange], ranks: int, copied: float = 0.0) -> float:
        """How long the training's own step is on several ranks.

        Args:
            step: Seconds of it on one.
            exchanges: Its own.
            ranks: How many there are.
            copied: Seconds of the strategy beside them; see `wrapped`.

        Returns:
            Seconds.
        """
        sent = self.seconds(exchanges, ranks)
        if self.overlaps:
            return FORWARD * step + max((1 - FORWARD) * step, sent) + copied
        return step + sent + copied

    def wrapped(self, strategy: str, tensors: int, size: float) -> float:
        """How long a strategy works beside the exchanges themselves: hooks, buckets, pieces.

        Args:
            strategy: Its name; of ZeRO nothing is known.
            tensors: How many parameters there are.
            size: Bytes of them.

        Returns:
            Seconds of a step.
        """
        sharding = self.sharding
        by_tensor, by_byte = {"ddp": self.wrapper, "fsdp": sharding, "hsdp": sharding}.get(strategy, (0.0, 0.0))
        return by_tensor * tensors + by_byte * size


def carried(kind: str, ranks: int) -> float:
    """How many times what a rank hands over passes through its link, by the usual algorithms (rings).

    Args:
        kind: See `Exchange.kind`.
        ranks: How many there are.

    Returns:
        2 (W - 1) / W of an all-reduce, (W - 1) / W of a reduce-scatter, W - 1 of an all-gather, where every rank gets
        what each has, and 1 of a reduce and an all-to-all.
    """
    return {
        "all_reduce": 2 * (ranks - 1) / ranks,
        "reduce_scatter": (ranks - 1) / ranks,
        "all_gather": ranks - 1.0,
        "reduce": 1.0,
        "all_to_all": 1.0,
    }[kind]


#: By name. Bandwidths are what exchanges reach of the links' nominal ones, a rank.
NETWORKS = {
    "loopback": Network(1e9, 100e-6, overlaps=False),
    "ethernet": Network(1.1e9, 50e-6),
    "infiniband": Network(40e9, 20e-6),
    "nvlink": Network(300e9, 15e-6),
}


#: Joins ranks in no time.
NOTHING = Network(math.inf, 0.0)


def network_of(said: str | None, *, cpu: bool, nodes: int, gpus: int = 1) -> Network:
    """The network of `--network`, and inside each of several machines the usual one.

    Args:
        said: One of `NETWORKS`, or GB a second with or without "@" and the microseconds of a hop ("12.5@20").
        cpu: Whether ranks are processes on CPUs.
        nodes: Machines.
        gpus: Ranks of each.

    Returns:
        The network; where nothing is said "loopback" on one machine's CPUs, "ethernet" between those of several,
        "nvlink" inside a machine of GPUs, "infiniband" between several.

    Raises:
        ConfigError: If it is none.
    """
    found = _named(said or usual(cpu=cpu, nodes=nodes))
    return found if nodes == 1 else replace(found, inside=NETWORKS[usual(cpu=cpu, nodes=1)], machine=gpus)


def usual(*, cpu: bool, nodes: int) -> str:
    """The name of the network that is taken where nothing is said."""
    inside, between = ("loopback", "ethernet") if cpu else ("nvlink", "infiniband")
    return inside if nodes == 1 else between


def _named(said: str) -> Network:
    """One of `NETWORKS`, or of a speed that is given."""
    if said in NETWORKS:
        return NETWORKS[said]
    speed, _, hop = said.partition("@")
    usual = NETWORKS["ethernet"]
    try:
        found = replace(usual, bandwidth=1e9 * float(speed), latency=1e-6 * float(hop) if hop else usual.latency)
    except ValueError:
        found = replace(usual, bandwidth=0.0)
    if not (0 < found.bandwidth < math.inf and 0 <= found.latency < math.inf):
        raise ConfigError(
            f"--network must be one of {list(NETWORKS)}, or GB a second with or without the microseconds of a hop "
            f"(12.5, 12.5@20), and is {said!r}."
        )
    return found
