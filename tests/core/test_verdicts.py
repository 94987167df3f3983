"""What the host does not know yet of solves survives a save, and is counted by how it was solved."""

import copy
from dataclasses import replace
from unittest import mock

import pytest
import torch

from lightning_so import SOAP, attach
from tests.support.late import late
from tests.support.problems import Net, train


def pair(lag, period=2):
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    return net, optimizer, attach(net, optimizer, SOAP(start=2, period=period), lag=lag)


def failing(afresh):
    """Plain solves fail; those afresh as well, or not."""
    solve, solve_afresh = SOAP.solve, SOAP.solve_afresh

    def fails(self, asked):
        solved = solve(self, asked)
        return replace(solved, good=torch.zeros_like(solved.good))

    def fails_afresh(self, stats, unit):
        return replace(solve_afresh(self, stats, unit), ok=not afresh)

    return mock.patch.multiple(SOAP, solve=fails, solve_afresh=fails_afresh)


@pytest.mark.parametrize("period", [1, 2])
@pytest.mark.parametrize("lag", [0, 1])
def test_a_plain_solve_that_fails_is_made_afresh_and_is_no_failure(lag, period):
    net, optimizer, engine = pair(lag, period)
    train(net, optimizer, range(8))
    solved = engine.report.solves
    with failing(afresh=False):
        train(net, optimizer, range(8, 20))
    assert engine.report.solves > solved
    assert engine.report.retries > 0
    assert engine.report.failures == engine.report.cooled == 0


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("stop", [10, 11, 12, 13])
def test_a_run_that_is_resumed_learns_of_the_same_failures(stop, lag):
    found = []
    for stopped in (False, True):
        torch.manual_seed(0)
        net, optimizer, engine = pair(lag)
        train(net, optimizer, range(8))
        with failing(afresh=True):
            train(net, optimizer, range(8, stop))
            if stopped:
                kept = copy.deepcopy((net.state_dict(), optimizer.state_dict(), engine.state_dict()))
                net, optimizer, engine = pair(lag)
                net.load_state_dict(kept[0])
                optimizer.load_state_dict(kept[1])
                engine.load_state_dict(kept[2])
            train(net, optimizer, range(stop, 18))
        found.append((engine.report, net.state_dict()))
    (alone, weights), (again, resumed) = found
    assert (alone.failures, alone.retries, alone.cooled) == (again.failures, again.retries, again.cooled)
    assert alone.failures > 0
    for name, weight in weights.items():
        assert torch.equal(weight, resumed[name])


def half_failing():
    """Weights and report of a run with a lag, in which no row side is solved but afresh."""
    solve = SOAP.solve

    def fails(self, asked):
        solved = solve(self, asked)
        sides = torch.tensor([unit.side == 0 for _, unit in asked])
        return replace(solved, good=solved.good & ~sides)

    torch.manual_seed(0)
    net, optimizer, engine = pair(1, period=1)
    with mock.patch.multiple(SOAP, solve=fails):
        train(net, optimizer, range(20))
    return net.state_dict(), engine.report


def test_solves_that_run_late_fail_as_others_do():
    (expected, told), (weights, report) = half_failing(), late(half_failing)
    assert report == told
    assert report.retries > 0
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name
