"""Ranks that are not equally fast: their units move, and weights are those of equal ones."""

import pytest
import torch

from lightning_so import EKFAC, KFAC, SOAP, Shampoo
from tests.support import slowed

SOAP8 = SOAP(start=4, period=8)
METHODS = {
    "soap": SOAP8,
    "shampoo": Shampoo(period=8),
    "kfac": KFAC(fisher="empirical", period=8),
    "ekfac": EKFAC(fisher="empirical", period=8),
}
pytestmark = pytest.mark.slow


def close(many, one):
    for weights, *_ in many:
        for name, value in weights.items():
            assert torch.equal(value, many[0][0][name]), f"ranks differ in {name}"
            torch.testing.assert_close(value, one[0][name], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "lag"), [*((name, 0) for name in METHODS), ("soap", 1), ("kfac", 1)])
def test_a_slow_rank_solves_less_and_weights_are_those_of_one_process(two, alone, name, lag):
    method = METHODS[name]
    one = alone(method, lag)
    many = two.run(slowed.trained, method, slowed.half, 100, lag=lag)
    close(many, one)
    (_, told, moved, owners, here), (_, _, _, others, there) = many
    assert owners == others
    assert moved > 0
    assert any("rank 1 takes 2 times the median rank's seconds" in str(line) for line in told)
    # The slow rank is busy as long as the other.
    settled = [(each[-1] - each[-17]) * slow for each, slow in ((here, 1), (there, 2))]
    assert max(settled) <= 1.2 * sum(settled) / 2


@pytest.fixture(scope="module")
def alone():
    """Runs of one process, each once."""
    known = {}

    def run(method, lag):
        key = str(method), lag
        if key not in known:
            known[key] = slowed.trained(method, slowed.half, 100, lag=lag)
        return known[key]

    return run


def test_noise_on_equal_ranks_moves_nothing(two):
    (_, told, moved, owners, _), _ = two.run(slowed.trained, SOAP8, slowed.noisy, 150)
    assert moved == 0
    assert told == []
    assert owners == two.run(slowed.trained, SOAP8, slowed.equal, 1)[0][3]


def test_a_rank_that_slows_down_later_is_noticed_and_has_its_units_back_once_it_is_as_before(two):
    (_, told, moved, owners, here), (*_, there) = two.run(slowed.trained, SOAP8, slowed.later, 260)
    assert "for a solve rank 1 takes 3 times the median rank's seconds; 8 of 14 units are moved" in str(told[0])
    assert "for a solve rank 1 takes the median rank's seconds" in str(told[-1])
    assert here[150] - here[134] > 2 * (there[150] - there[134])
    assert owners == two.run(slowed.trained, SOAP8, slowed.equal, 1)[0][3]
    assert moved >= 16


@pytest.mark.parametrize("name", ["soap", "kfac"])
def test_a_resumed_run_goes_on_with_the_speeds_and_owners_of_the_checkpoint(two, name):
    found = two.run(slowed.resumed, METHODS[name], slowed.half, 80, 110)
    for ((weights, owners, told), (again, others, news)), held, loaded, at_once in found:
        assert held == loaded
        assert held["slowness"] == [8, 16]
        assert at_once == owners == others
        assert told
        assert not news
        for key, value in weights.items():
            assert torch.equal(value, again[key]), key
