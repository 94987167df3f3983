"""A Trainer with SecondOrder gives the weights of one process under FSDP2, FSDP1 and DDP: a transformer in float32."""

import functools

import pytest
import torch

from lightning_so import EKFAC, KFAC, SOAP, Muon, Shampoo
from tests.support.trainings import train

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
#: The last of the bases that start at the second have begun to turn at the tenth.
STEPS = 12
METHODS = {
    "soap": (SOAP(start=2, period=8), ADAMW),
    "muon": (Muon(), ADAMW),
    "kfac-sgd": (KFAC(fisher="empirical", period=4), SGD),
    "kfac-adamw": (KFAC(fisher="empirical", period=4), ADAMW),
    # Roots of nearly singular factors magnify rounding: with an epsilon of 1e-6 (the default) float32 agrees to 4e-4.
    "shampoo": (Shampoo(period=4, epsilon=1e-3), ADAMW),
    "ekfac": (EKFAC(fisher="empirical", start=2, period=8), ADAMW),
}
SITUATIONS = {"plain": {}, "accumulate and clip": {"accumulate": 2, "clip": 0.3}}
STRATEGIES = ("fsdp2", "fsdp1", "ddp")
EVERYDAY = [("fsdp2", "soap", "accumulate and clip")]
ROWS = [
    pytest.param(*row, marks=() if row in EVERYDAY else pytest.mark.slow)
    for row in (
        *(("fsdp2", m, "plain") for m in METHODS),
        *((s, m, EVERYDAY[0][2]) for s in STRATEGIES for m in METHODS),
    )
]


@functools.cache
def one(method, situation):
    return train("one", *METHODS[method], steps=STEPS, **SITUATIONS[situation])


@pytest.mark.parametrize(("strategy", "method", "situation"), ROWS)
def test_two_ranks_equal_one_process(two, strategy, method, situation):
    found = two.run(train, strategy, *METHODS[method], steps=STEPS, **SITUATIONS[situation])
    alone = one(method, situation)
    for name, value in alone.weights.items():
        for rank in found:
            assert torch.equal(rank.weights[name], found[0].weights[name]), f"ranks differ in {name}"
        torch.testing.assert_close(found[0].weights[name], value, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert sum(rank.report.solved_here for rank in found) == alone.report.solves
    assert alone.report.rotated + alone.report.bent + alone.report.preconditioned > 0
    assert all(rank.report.withheld == rank.report.skipped == 0 for rank in found)


@pytest.mark.parametrize("method", [pytest.param("soap", marks=pytest.mark.slow), "muon"])
def test_empty_pieces_of_fsdp1_are_no_missing_gradients(two, method):
    """Pitfall 14: FSDP1 leaves a gradient of None where a rank has nothing of a parameter."""
    found, alone = two.run(train, "fsdp1", *METHODS[method], steps=STEPS), one(method, "plain")
    empty = [{name for name, numbers in rank.held.items() if numbers == 0} for rank in found]
    covered = {"blocks.0.query.weight", "blocks.1.query.weight", "narrow.weight", "blocks.0.up.weight"}
    assert any(names & covered for names in empty)
    for rank in found:
        assert rank.report.withheld == 0
        for name, value in alone.weights.items():
            torch.testing.assert_close(rank.weights[name], value, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ekfac_in_float64(two, strategy):
    named = {"steps": 16, "dtype": torch.float64}
    alone = train("one", *METHODS["ekfac"], **named)
    for rank in two.run(train, strategy, *METHODS["ekfac"], **named):
        for name, value in alone.weights.items():
            torch.testing.assert_close(rank.weights[name], value, rtol=0, atol=1e-11)
