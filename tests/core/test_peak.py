"""What a step has at its most: the plan foretells it, and it is little where curvature is to hold less."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from benchmarks.steps.memory import foretold
from lightning_so import EKFAC, KFAC, SOAP, Memory, Muon, Shampoo
from lightning_so.cli.planning.tracker import Tracker
from lightning_so.core.stacks import stack as stacks
from lightning_so.core.trust.memory import state_bytes
from tests.core.test_memory import ADAMW, Training
from tests.support.daily import daily

METHODS = {
    "soap": SOAP(start=4, period=4),
    "kfac": KFAC(period=4),
    "ekfac": EKFAC(start=4, period=4),
    "shampoo": Shampoo(period=4),
    "muon": Muon(),
}
#: Steps over which intervals are at their shortest, and blocks enter their bases.
STEPS = 26
SIZES = (64,) * 17


@pytest.fixture(autouse=True)
def _(monkeypatch):
    monkeypatch.setattr(stacks, "LEAST", 2 * 64 * 65)


def most(method, memory):
    """Bytes of all but weights and gradients that a training has at its most."""
    training = Training(method, ADAMW, memory, dtype=torch.float32, sizes=SIZES)
    parts, weights, found = training.engine.parts, training.weights.nbytes, []
    for step in range(STEPS):
        training.optimizer.zero_grad()
        before = state_bytes(parts.units, parts.matrices)
        loss = training.model(torch.randn(2, SIZES[0], generator=training.batches)).square().mean()
        with Tracker() as made:
            training.engine.before_backward(loss)
            loss.backward()
            training.optimizer.step()
        # Moments are there after the first step; gradients are made here, and not counted.
        found += [before + 2 * weights + made.most - weights] if step else []
    return max(found)


def without_numbers():
    layers = [part for pair in pairwise(SIZES) for part in (nn.Linear(*pair, device="meta"), nn.Tanh())]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("memory", [None, Memory()], ids=["full", "lean"])
@pytest.mark.parametrize("name", daily(METHODS, "soap"))
def test_the_plan_foretells_the_most_that_a_step_has(name, memory):
    assert most(METHODS[name], memory) == pytest.approx(foretold(without_numbers(), METHODS[name], memory), rel=0.02)


@pytest.mark.parametrize(("name", "little"), daily([("soap", 7.5), ("kfac", 8.5)], ("kfac", 8.5)))
def test_results_and_windows_are_few_at_once_where_curvature_is_to_hold_less(name, little):
    assert most(METHODS[name], Memory()) < little * 64 * 64 * 4 * (len(SIZES) - 1)
