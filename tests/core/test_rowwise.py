"""Gradients preconditioned through the rows that made them: the same, or the whole way."""

import pytest
import torch

from lightning_so import KFAC, attach
from tests.methods.test_kfac import close, data, net


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_rows_give_what_the_matrix_gives(scale, monkeypatch):
    ends = []
    for rowwise in (True, False):
        torch.manual_seed(0)
        model, (x, y) = net(sizes=(20, 24, 18)), data(4, 20, 18)
        monkeypatch.setattr(KFAC, "rowwise", rowwise)
        engine = attach(model, torch.optim.SGD(model.parameters(), lr=1e-2), KFAC(period=2))
        applied = []
        inside = KFAC.of_rows
        monkeypatch.setattr(KFAC, "of_rows", lambda *a, inside=inside, applied=applied: applied.append(1) or inside(*a))
        for _ in range(5):
            engine.optimizer.zero_grad()
            (model(x) - y).square().sum(1).mean().backward()
            for p in model.parameters():
                p.grad.mul_(scale)  # as a clip does
            engine.optimizer.step()
        monkeypatch.undo()
        assert bool(applied) is rowwise
        ends.append(model)
    for found, expected in zip(ends[0].parameters(), ends[1].parameters()):
        close(found, expected)


def test_a_gradient_that_rows_did_not_make_goes_the_whole_way(monkeypatch):
    model, (x, y) = net(sizes=(20, 24, 18)), data(4, 20, 18)
    engine = attach(model, torch.optim.SGD(model.parameters(), lr=1e-2), KFAC(period=2))
    monkeypatch.setattr(KFAC, "of_rows", lambda *_: pytest.fail("the gradient was changed"))
    for _ in range(3):
        engine.optimizer.zero_grad()
        (model(x) - y).square().sum(1).mean().backward()
        for p in model.parameters():
            p.grad.add_(torch.ones_like(p), alpha=1e-6)
        engine.optimizer.step()
    assert engine.report.preconditioned > 0
