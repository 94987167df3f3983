"""Under FSDP2 any number of ranks gives the weights of one process, with each method, base and situation."""

import functools

import pytest
import torch

from lightning_so import EKFAC, KFAC, SOAP, Mixture, Muon, Shampoo
from tests.support import shards

METHODS = {
    "soap": SOAP(start=6, period=4),
    "muon": Muon(),
    "kfac": KFAC(fisher="empirical", period=4),
    "exact": KFAC(fisher="empirical", period=4, exact=True, cap=4),
    "shampoo": Shampoo(period=4),
    "ekfac": EKFAC(fisher="empirical", start=6, period=4),
    "mixture": Mixture({"Conv1d": KFAC(fisher="empirical", period=4), "up.*": "muon", "*": SOAP(start=6, period=8)}),
}
BASES = {
    "adamw": (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"lr": 3e-3, "weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "amsgrad": (torch.optim.AdamW, {"lr": 3e-3, "amsgrad": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2}),
}
PAIRS = [
    *(f"{method} {base}" for method in ("muon", "kfac", "shampoo", "ekfac") for base in ("adamw", "sgd")),
    *("soap adamw", "soap adam", "soap amsgrad", "soap adagrad", "exact sgd", "mixture adamw"),
]
SITUATIONS = {
    "plain": {},
    "all": {"accumulate": 2, "clip": 0.05, "groups": True},
}
EVERYDAY = ("kfac sgd", "ekfac adamw")
PLAIN = ("soap adamw", "kfac sgd", "shampoo adamw")
ROWS = [
    *(pytest.param(pair, "all", marks=() if pair in EVERYDAY else pytest.mark.slow) for pair in PAIRS),
    *(pytest.param(pair, "plain", marks=pytest.mark.slow) for pair in PLAIN),
]


def arguments(pair):
    method, base = pair.split()
    return (METHODS[method], *BASES[base])


@functools.cache
def one(pair, situation):
    return shards.train(*arguments(pair), **SITUATIONS[situation])


def same(many, alone, tolerance=1e-11):
    """The ranks' weights are equal to the bit, and one process' up to rounding."""
    for name, value in alone.weights.items():
        found = many[0].weights[name]
        assert all(torch.equal(found, rank.weights[name]) for rank in many), f"ranks differ in {name}"
        torch.testing.assert_close(found, value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def equal(pool, pair, situation, **more):
    many, alone = pool.run(shards.train, *arguments(pair), **SITUATIONS[situation], **more), one(pair, situation)
    same(many, alone)
    for rank in many:
        for count in ("solves", "failures", "rotated", "bent", "preconditioned"):
            assert getattr(rank.report, count) == getattr(alone.report, count)
    # Each solve was done once, by the owner.
    assert sum(rank.report.solved_here for rank in many) == alone.report.solves
    assert alone.report.rotated + alone.report.bent + alone.report.preconditioned > 0


@pytest.mark.parametrize(("pair", "situation"), ROWS)
def test_two_ranks_give_the_weights_of_one_process(two, pair, situation):
    equal(two, pair, situation)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["soap adamw", "kfac sgd", "ekfac sgd"])
def test_four_ranks_give_the_weights_of_one_process(four, pair):
    equal(four, pair, "all")


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["soap adam", "muon adamw", "kfac sgd", "ekfac sgd"])
def test_two_replicas_of_two_pieces_give_the_weights_of_one_process(four, pair):
    equal(four, pair, "all", mesh=(2, 2))
