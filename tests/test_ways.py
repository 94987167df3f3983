"""The contract of all methods and layers, go on: how a batch comes does not matter."""

import pytest
import torch

from lightning_so.core.errors import ConfigError
from tests import ways
from tests.test_contract import LAYERS, METHODS
from tests.world import World

assert issubclass(ConfigError, ValueError)
PAIRINGS = [
    (name, number, base)
    for name in LAYERS
    for number in range(len(METHODS))
    for base in ways.BASES
    if ways.works(name, number, base)
]
#: Of a batch's statistics every sample depends on all.
APART = [pairing for pairing in PAIRINGS if pairing[0] != "batchnorm"]


def label(pairing):
    name, number, base = pairing
    return f"{name}-{type(METHODS[number]).__name__}-{number}-{base}"


def same(found, expected):
    (parameters, acted), (others, also) = found, expected
    assert acted == also > 0
    for a, b in zip(parameters, others, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


@pytest.fixture(scope="module")
def whole():
    kept = {}

    def run(pairing):
        if pairing not in kept:
            kept[pairing] = ways.walked(*pairing, "whole")
        return kept[pairing]

    return run


@pytest.fixture(scope="module")
def world():
    world = World(2)
    yield world
    world.close()


@pytest.mark.slow
@pytest.mark.parametrize("pairing", APART, ids=label)
def test_micro_batches_are_the_batch(whole, pairing):
    same(ways.walked(*pairing, "micro"), whole(pairing))


@pytest.mark.slow
@pytest.mark.parametrize("pairing", PAIRINGS, ids=label)
def test_a_checkpoint_changes_nothing(whole, pairing):
    same(ways.walked(*pairing, "checkpointed"), whole(pairing))


@pytest.mark.slow
@pytest.mark.parametrize("pairing", APART, ids=label)
def test_two_ranks_are_one(whole, world, pairing):
    for found in world.run(ways.walked, *pairing, "ranks"):
        same(found, whole(pairing))
