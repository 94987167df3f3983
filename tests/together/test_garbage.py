"""A step of ours leaves nothing behind: no circles of objects, which Python's collector would stop a step for."""

import gc
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lightning_so import EKFAC, KFAC, SOAP, Muon, Shampoo, attach
from tests.support.daily import daily
from tests.support.operations import transformer

STEPS, PERIOD = 20, 4
ADAMW, SGD = torch.optim.AdamW, torch.optim.SGD
PAIRS = [
    (SOAP(start=4, period=PERIOD), ADAMW),
    (Muon(), ADAMW),
    (Shampoo(period=PERIOD), ADAMW),
    (KFAC(period=PERIOD), SGD),
    (EKFAC(start=4, period=PERIOD), ADAMW),
]
DAILY = daily(PAIRS, PAIRS[0], PAIRS[3])

pytestmark = pytest.mark.thread("own")


@contextmanager
def uncollected():
    """Nothing is collected inside the context but by hand, and only what is made inside."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.mark.parametrize(("method", "base"), DAILY, ids=lambda one: getattr(one, "__name__", type(one).__name__))
def test_a_step_leaves_no_circles_and_nothing_that_stays(method, base):
    model = transformer(2)
    optimizer = base(model.parameters(), lr=1e-3)
    engine = attach(model, optimizer, method)
    words, found, alive = torch.arange(24).view(3, 8), [], []
    with uncollected():
        for _ in range(2 * STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(words).flatten(0, 1), words.flatten())
            engine.before_backward(loss)
            loss.backward()
            optimizer.step()
            found.append(gc.collect())
            alive.append(len(gc.get_objects()))
    assert engine.report.bent + engine.report.rotated + engine.report.preconditioned > 0
    assert found == [0] * 2 * STEPS
    # What a step has of the one before, verdicts for example, comes and goes with the period.
    assert min(alive[-PERIOD:]) - min(alive[STEPS:][:PERIOD]) < STEPS / 4
