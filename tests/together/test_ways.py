"""The contract of all methods and layers, go on: how a batch comes does not matter."""

from collections import Counter

import pytest
import torch

from lightning_so.errors import ConfigError
from tests.contract.test_contract import LAYERS, METHODS
from tests.support import ways

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


def few(pairings, times):
    """Of all pairings, which take minutes, those that show every layer and every method often enough on every base."""
    seen, found = Counter(), []
    for name, number, base in pairings:
        facts = [(name, base), (number, base)]
        if any(seen[fact] < times for fact in facts):
            seen.update(facts)
            found.append((name, number, base))
    return found


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


@pytest.mark.slow
@pytest.mark.parametrize("pairing", few(APART, 2), ids=label)
def test_micro_batches_are_the_batch(whole, pairing):
    same(ways.walked(*pairing, "micro"), whole(pairing))


@pytest.mark.slow
@pytest.mark.parametrize("pairing", few(PAIRINGS, 2), ids=label)
def test_a_checkpoint_changes_nothing(whole, pairing):
    same(ways.walked(*pairing, "checkpointed"), whole(pairing))


@pytest.mark.slow
@pytest.mark.parametrize("pairing", few(APART, 1), ids=label)
def test_two_ranks_are_one(whole, two, pairing):
    for found in two.run(ways.walked, *pairing, "ranks"):
        same(found, whole(pairing))
