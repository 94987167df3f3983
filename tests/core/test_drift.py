"""How far bases have turned: known angles, and what a training notes of it."""

import math

import pytest
import torch

from lightning_so import EKFAC, KFAC, SOAP, attach
from lightning_so.core.solves.drift import drift
from tests.support.problems import Net, train


def bases(*angles, width=4):
    """Bases of which the first two axes are turned, shape (k, 1, width, width)."""
    found = torch.eye(width).repeat(len(angles), 1, 1, 1)
    for Q, angle in zip(found, angles, strict=True):
        c, s = math.cos(angle), math.sin(angle)
        Q[0, :2, :2] = torch.tensor([[c, -s], [s, c]])
    return found


def test_the_share_is_that_of_the_angle():
    same = torch.arange(4).expand(2, 1, 4)
    found = drift(bases(0, 0), bases(0.1, 0.3), same)
    assert float(found) == pytest.approx(math.sin(0.3) ** 2 / 2, rel=1e-5)  # of two columns in four
    assert float(drift(bases(0.4, 0.4), bases(0.4, 0.4), same)) == pytest.approx(0, abs=1e-6)


def test_columns_that_change_places_or_signs_have_not_turned():
    order = torch.tensor([[[2, 0, 3, 1]]])
    old = bases(0.4)
    new = -old[..., order[0, 0]]
    assert float(drift(old, new, order)) == pytest.approx(0, abs=1e-6)
    assert float(drift(old, new, torch.arange(4).view(1, 1, 4))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("method", [SOAP(start=2, period=2), EKFAC(period=2)], ids=["soap", "ekfac"])
def test_a_training_notes_it_where_someone_takes_it_out(method):
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    engine = attach(net, optimizer, method)
    train(net, optimizer, range(4))
    assert engine.parts.turned is None
    engine.parts.turned = []
    solves = engine.report.solves
    train(net, optimizer, range(4, 12))
    assert engine.report.solves > solves
    shares = torch.stack(engine.parts.turned)
    assert (shares > 1e-6).any()
    assert ((shares > -1e-5) & (shares <= 1)).all()


def test_inverses_have_no_axes():
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    engine = attach(net, optimizer, KFAC(period=2))
    engine.parts.turned = []
    train(net, optimizer, range(8))
    assert engine.report.solves > 0
    assert engine.parts.turned == []
