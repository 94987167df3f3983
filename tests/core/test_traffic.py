"""What ranks send is what was predicted, and no more than was promised."""

import re

import pytest
import torch

from lightning_so import EKFAC, KFAC, SOAP, Muon, Shampoo
from tests.support import shards
from tests.together.test_fsdp2 import BASES

COLD = SOAP(start=10**6, period=2)
CASES = {
    "soap adamw": SOAP(start=4, period=4),
    "soap adam": SOAP(start=4, period=2),
    "soap amsgrad": SOAP(start=4, period=4, cap=4),
    "muon sgd": Muon(),
    "kfac adamw": KFAC(fisher="empirical", period=2),
    "kfac sgd": KFAC(fisher="empirical", period=4),
    "shampoo adamw": Shampoo(period=4),
    "shampoo sgd": Shampoo(period=4),
    "ekfac adamw": EKFAC(fisher="empirical", start=4, period=4),
    "ekfac sgd": EKFAC(fisher="empirical", period=4),
}
#: Slopes along bent updates are taken less often after the 64th step, which shows where they are much of the traffic.
LATE = {"kfac adamw": 88, "shampoo adamw": 88}
EVERYDAY = [("two", "soap adam")]
ROWS = [*(("two", case) for case in CASES), ("four", "kfac sgd")]


@pytest.mark.parametrize(
    ("size", "case"), [pytest.param(*row, marks=() if row in EVERYDAY else pytest.mark.slow) for row in ROWS]
)
def test_bytes_of_sharded_parameters_are_as_predicted(request, size, case):
    pool = request.getfixturevalue(size)
    # The interval is at its largest after ten of them, and its slots are kept after one more.
    steps = max(11 * CASES[case].pace()[0] + 20, LATE.get(case, 0))
    for rank in pool.run(shards.train, CASES[case], *BASES[case.split()[1]], steps):
        assert (rank.sent[-1] - rank.sent[-17]) / 16 == pytest.approx(rank.predicted[0], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [None, (2, 2)], ids=["sharded", "replicas"])
def test_bytes_of_cold_blocks_are_as_predicted(request, mesh):
    pool = request.getfixturevalue("four" if mesh else "two")
    for rank in pool.run(shards.train, COLD, *BASES["adamw"], 88, mesh=mesh):
        assert (rank.sent[-1] - rank.sent[-17]) / 16 == pytest.approx(rank.predicted[1], rel=0.01)
        assert rank.predicted[1] != pytest.approx(rank.predicted[0], rel=0.2)


@pytest.mark.parametrize(
    ("method", "base", "trips"),
    [
        (KFAC(fisher="empirical", period=4), "sgd", 2),
        pytest.param(KFAC(fisher="empirical", period=4), "adamw", 2, marks=pytest.mark.slow),
        pytest.param(Shampoo(period=4), "sgd", 2, marks=pytest.mark.slow),
        pytest.param(Muon(), "adamw", 2, marks=pytest.mark.slow),
        (SOAP(start=4, period=4), "adamw", 4),
        pytest.param(EKFAC(fisher="empirical", start=4, period=4), "adamw", 4, marks=pytest.mark.slow),
        # The gradient is observed before the moment exists that is bent: a third trip.
        pytest.param(COLD, "adamw", 3, marks=pytest.mark.slow),
        pytest.param(Shampoo(period=4), "adamw", 3, marks=pytest.mark.slow),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int | str) else str(value),
)
def test_pieces_travel_no_more_often_than_promised_and_curvature_is_shared_out(pool, method, base, trips):
    """A rank has N / W numbers of N on W ranks, owns as many, and need not send its own to itself."""
    ranks, covered = len(pool.pipes), 8 * 16 * 16
    how = {"model": shards.Equal, "dtype": torch.float32}
    alone = shards.train(method, *BASES[base], 1, **how)
    for rank in pool.run(shards.train, method, *BASES[base], 16, **how):
        # A few numbers a block are on all ranks.
        assert rank.curvature == pytest.approx(alone.curvature / ranks, rel=0.05)
        sent = rank.pieces[-1]
        assert sent == trips * 4 * covered / ranks * (ranks - 1) / ranks
        assert sent <= trips * 4 * covered / ranks


def test_the_plan_says_where_matrices_are_and_what_travels(two):
    for method, often in ((SOAP(), r"4 trips \(cold: 3\)"), (Muon(), "2 trips")):
        for rank in two.run(shards.train, method, *BASES["adamw"], 1):
            line = next(line for line in rank.plan.splitlines() if "sharded" in line)
            found = re.fullmatch(
                rf"  sharded over 2 ranks: whole matrices at owners, ([\d.]+) kB a step in {often}", line
            )
            assert found, line
            # Before the first step it is not known which moments the base will keep, but it is guessed well.
            assert float(found[1]) == pytest.approx(rank.predicted[0] / 1e3, abs=0.051)
    alone = shards.train(Muon(), *BASES["adamw"], 1)
    assert "ranks" not in alone.plan
    assert alone.predicted == (0.0, 0.0)
