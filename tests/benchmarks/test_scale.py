"""The scaling model: solves fall as 1 / W, one unit alone is the floor, and speeds are what is put in."""

from dataclasses import replace

import pytest
from torch import nn

from benchmarks.scale.model import point
from benchmarks.scale.models import MODELS, Model
from lightning_so.cli.planning.network import NETWORKS
from lightning_so.cli.planning.speeds import Speeds

NETWORK = replace(NETWORKS["infiniband"], inside=NETWORKS["nvlink"], machine=8)
USUAL = Speeds()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(MODELS, "small", Model(lambda: [nn.Linear(64, 64, bias=False) for _ in range(16)], 4, 32))

    def made(ranks, *, method="soap", strategy="ddp", device=USUAL, network=NETWORK):
        return point("small", method, strategy, ranks, device, network)

    return made


@pytest.mark.slow
def test_solves_are_shared_out_and_one_unit_is_the_floor(small):
    one, four, many = (small(ranks) for ranks in (1, 4, 64))
    assert four["solves_ms"] == pytest.approx(one["solves_ms"] / 4)
    assert many["solves_ms"] == pytest.approx(one["solves_ms"] / 32)  # There are 32 units.
    assert one["floor_ms"] == four["floor_ms"] == many["floor_ms"] > 0
    assert many["largest_ms"] - many["own_ms"] >= many["floor_ms"]


@pytest.mark.slow
def test_speeds_are_what_is_put_in(small):
    usual, quick = small(2), small(2, device=replace(USUAL, solves=3e12))
    assert quick["solves_ms"] == pytest.approx(usual["solves_ms"] / 2)
    assert quick["own_ms"] == usual["own_ms"]
    own = small(1, device=replace(USUAL, training=200e12))["own_alone_ms"]
    assert own == pytest.approx(1e3 * 2 * 3 * 4 * 32 * 16 * 64 * 64 / 200e12)
    slow = replace(NETWORK, inside=replace(NETWORKS["nvlink"], bandwidth=3e8, latency=1.5e-3))
    assert small(2, network=slow)["exchange_ms"] > 10 * usual["exchange_ms"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["muon", "kfac"])
def test_every_strategy_has_a_point(small, method):
    ddp, fsdp, hsdp = (small(16, method=method, strategy=strategy) for strategy in ("ddp", "fsdp", "hsdp"))
    assert sum(fsdp["memory"].values()) < sum(ddp["memory"].values())
    assert fsdp["memory"]["weights"] == hsdp["memory"]["weights"] / 2
    assert min(each["mean_ms"] - each["own_ms"] for each in (ddp, fsdp, hsdp)) > 0
