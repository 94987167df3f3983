"""Under FSDP2 any number of ranks gives the weights of one process, with each method, base and situation."""

import pytest
import torch

from lightning_so import EKFAC, KFAC, SOAP, Muon, Shampoo
from tests import shards
from tests.world import World

METHODS = {
    "soap": SOAP(start=10, period=4),
    "muon": Muon(),
    "kfac": KFAC(period=4),
    "shampoo": Shampoo(period=4),
    "ekfac": EKFAC(start=10, period=4),
}
ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
ADAM = (torch.optim.Adam, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01})
PAIRS = [(name, ADAMW) for name in METHODS] + [("soap", ADAM), ("muon", SGD), ("kfac", SGD), ("shampoo", SGD)]
SITUATIONS = {"plain": {}, "accumulate": {"accumulate": 2}, "clip": {"clip": 0.05}, "groups": {"groups": True}}


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def world(request):
    world = World(request.param)
    yield world
    world.close()


def named(value):
    return value if isinstance(value, str) else value[0].__name__


def same(many, one, tolerance=1e-5):
    for name, value in one[0].items():
        found = many[0][0][name]
        assert all(torch.equal(found, weights[name]) for weights, *_ in many), f"ranks differ in {name}"
        torch.testing.assert_close(found, value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize(("method", "base"), PAIRS, ids=named)
def test_any_number_of_ranks_gives_the_weights_of_one_process(world, method, base, situation):
    arguments = (METHODS[method], *base, 30)
    many = world.run(shards.train, *arguments, **SITUATIONS[situation])
    same(many, shards.train(*arguments, **SITUATIONS[situation]))
