"""Exchanges in plans: their seconds by kind, the network that is asked for, and the one that is measured."""

from dataclasses import replace

import pytest
import torch

from lightning_so import KFAC, SOAP, ConfigError
from lightning_so.cli.planning.forecast import forecast
from lightning_so.cli.planning.loopback import fitted, loopback
from lightning_so.cli.planning.network import NETWORKS, Network, network_of
from lightning_so.cli.planning.world import World
from lightning_so.comm.supposed import Supposed
from lightning_so.core.overhead.clock import Clock
from lightning_so.core.overhead.timings import Timings
from lightning_so.core.trust.exchanges import Exchange
from lightning_so.core.trust.traffic import traffic
from tests.cli.test_plan import Deep, Small, asked

SLOW = Network(bandwidth=1e6, latency=0.5, overlaps=False)


def test_seconds_are_latencies_and_bytes():
    assert SLOW.seconds([Exchange("all_reduce", 2, 4e6)], 4) == 2 * 0.5 * 2 + 2 * 3 / 4 * 4
    assert SLOW.seconds([Exchange("reduce_scatter", 1, 4e6)], 4) == 0.5 * 2 + 3 / 4 * 4
    assert SLOW.seconds([Exchange("all_gather", 1, 1e6), Exchange("reduce", 0, 1e6)], 4) == 0.5 * 2 + 3 + 1
    assert SLOW.seconds([Exchange("all_to_all", 1, 1e6)], 1) == 0.0


def test_the_training_s_own_exchanges_hide_behind_its_backward_pass():
    sent = [Exchange("all_reduce", 0, 4e6)]
    assert Network(1e6, 0.0).own(12.0, sent, 2) == pytest.approx(12.0)
    assert Network(1e6, 0.0).own(3.0, sent, 2) == pytest.approx(1.0 + 4.0)
    assert Network(1e6, 0.0, overlaps=False).own(3.0, sent, 2, 5.0) == pytest.approx(3 + 4 + 5)


def test_a_strategy_works_beside_its_exchanges():
    network = Network(1e6, 0.0, (0.1, 1e-6), (0.2, 2e-6))
    assert network.wrapped("ddp", 10, 4e6) == pytest.approx(1 + 4)
    assert network.wrapped("fsdp", 10, 4e6) == network.wrapped("hsdp", 10, 4e6) == pytest.approx(2 + 8)
    assert network.wrapped("zero_2", 10, 4e6) == 0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", [SOAP(start=2, period=2), KFAC(fisher="empirical", period=4)])
@pytest.mark.slow
def test_exchanges_have_the_bytes_of_the_traffic(method, strategy):
    found = forecast(asked(method, Small, World(1, 2, strategy)))
    (parts,), (steps,) = found.engines, found.schedules
    due = [[number for numbers in of.values() for number in numbers] for of in steps.solves]
    hosts = [replace(parts.host, world=there, team=there) for there in (Supposed(0, 2), Supposed(1, 2))]
    predicted = max(traffic(parts.units, host, parts.matrices, due=due) for host in hosts)
    assert found.sent["curvature"] == pytest.approx(predicted)


@pytest.mark.slow
def test_steps_that_exchange_more_are_longer():
    found = forecast(asked(SOAP(start=2, period=2), Deep, World(1, 2)))
    count = max(found.engines[0].units.kinds) + 1
    times = [Timings(1.0, 0.0, 0.0, 0.0, 1, (0.0,) * count)]
    free, slow = (found.timed(times, network) for network in (Network(1e30, 0.0, overlaps=False), SLOW))
    gradients = 4 * 4 * 64 * 64
    # DDP's own buckets, and the agreement on gradients of four parameters at each step.
    assert slow.own == pytest.approx(1 + 0.5 + gradients / 1e6)
    ours = found.sent["curvature"] / 1e6 + 0.5 * 2
    assert slow.mean * slow.own == pytest.approx(slow.own + ours)
    assert free.largest == free.mean == 1.0
    assert slow.largest >= slow.mean


def test_networks_have_names_or_numbers():
    assert network_of(None, cpu=True, nodes=1) is NETWORKS["loopback"]
    several = network_of(None, cpu=False, nodes=2, gpus=8)
    assert several == replace(NETWORKS["infiniband"], inside=NETWORKS["nvlink"], machine=8)
    found = network_of("12.5@20", cpu=False, nodes=1)
    assert (found.bandwidth, found.latency) == pytest.approx((12.5e9, 20e-6))
    for bad in ("fast", "-1", "0", "1@x", "nan", "inf"):
        with pytest.raises(ConfigError, match="--network must be one of"):
            network_of(bad, cpu=False, nodes=1)


def test_what_was_measured_is_fitted():
    seconds = {("sum", 1, size): 1e-4 + size / 2e9 for size in (1024, 2**20, 2**22)}
    seconds |= {
        ("ddp", n, size): 1e-4 + size / 2e9 + 3e-6 * n + 1e-9 * size for n, size in ((96, 20000), (8, 4 * 2**20))
    }
    # Two gathers and a reduce-scatter: half of the bytes a rank each.
    seconds |= {("fsdp", n, size): 3e-4 + 1.5 * size / 2e9 + 5e-6 * n for n, size in ((96, 20000), (8, 4 * 2**20))}
    found = fitted(seconds)
    assert found.bandwidth == pytest.approx(2e9)
    assert found.latency == pytest.approx(1e-4)
    assert found.wrapper == pytest.approx((3e-6, 1e-9))
    assert found.sharding == pytest.approx((5e-6, 0), abs=1e-12)
    assert not found.overlaps
    assert found.windows is None
    windows = fitted({**seconds, ("windows", 1, 10**6): 0.01})
    assert windows.windows == pytest.approx(1e8)
    assert windows.seconds([Exchange("reduce", 0, 10**6)], 2) == pytest.approx(0.01)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_what_was_measured_of_some_ranks_is_what_they_take(ranks):
    true, sizes = Network(2e9, 1e-4), (1024, 2**20, 2**22)
    seconds = {("sum", 1, size): true.seconds([Exchange("all_reduce", 1, size)], ranks) for size in sizes}
    found = fitted(seconds, ranks)
    assert (found.bandwidth, found.latency) == (pytest.approx(2e9), pytest.approx(1e-4))


def test_machines_have_links_of_their_own():
    network = replace(SLOW, inside=Network(1e9, 0.0), machine=8)
    assert network.seconds([Exchange("reduce_scatter", 1, 8e9, "machine")], 16) == pytest.approx(7.0)
    assert network.seconds([Exchange("all_reduce", 1, 1e6, "across")], 16) == pytest.approx(0.5 + 1.0)
    assert network.seconds([Exchange("reduce", 1, 1e9)], 8) == pytest.approx(1.0)  # All of them are in one machine.
    assert network.seconds([Exchange("reduce", 1, 1e6)], 16) == pytest.approx(0.5 * 4 + 1.0)


@pytest.mark.slow
def test_hybrid_shards_travel_inside_machines_and_are_summed_across():
    found = forecast(asked(SOAP(start=2, period=2), Deep, World(2, 2, "hsdp")))
    whole = 4 * 4 * 64 * 64
    own = {what: (each.among, each.size) for what, each in found.exchanged.own.items()}
    assert own == {
        "gradients (the training's own)": ("machine", whole),
        "gradients across machines (the training's own)": ("across", whole / 2),
        "weights (the training's own)": ("machine", 2 * whole / 2),
    }
    assert found.memory[0]["weights"] == whole / 2


@pytest.mark.slow
def test_two_processes_are_measured():
    found = loopback(Clock())
    assert 1e-6 < found.latency < 0.1
    assert 1e7 < found.bandwidth < 1e12
    assert torch.tensor([found.wrapper, found.sharding]).min() >= 0
    assert found.sharding[0] > 0
