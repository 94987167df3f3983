"""The bound of preconditioned steps: what half of SGD's own promises, or a part of the loss; in no one's units."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_so import EKFAC, KFAC, ConfigError, OfRate, attach
from lightning_so.actions.precondition import Clip, Footing, factor
from tests.support.daily import daily


def nu(promised=1.0, bends=1.0, base=1.0, level=1.0, given=0.0, bound=1e-4, least=0.0):
    """The factor of one block."""
    total = torch.tensor([promised, bends, level, 1.0, given, base], dtype=torch.float64)
    return float(factor(total, bound, least))


def test_half_of_what_sgd_promises_is_always_allowed():
    assert nu(promised=10.0, base=2.0, bends=1e9, level=0.0) == pytest.approx(0.5 * 2 / 10)


def test_a_step_may_bend_a_part_of_the_loss():
    assert nu(base=0.0, bends=4.0, level=9.0, bound=1e-4) == pytest.approx(math.sqrt(1e-4 * 9 / 4))


def test_the_larger_of_both_counts_and_never_more_than_one():
    assert nu(promised=10.0, base=2.0, bends=10.0, level=1e4) == pytest.approx(math.sqrt(1e-4 * 1e4 / 10))
    assert nu(promised=1e-9, bends=1e-9) == 1.0


def test_where_labels_are_at_hand_the_smaller_counts_above_the_least():
    some = {"promised": 10.0, "base": 2.0, "bends": 10.0, "given": 0.3}
    assert nu(level=1e4, **some) == pytest.approx(0.1)
    assert nu(level=1e2, **some) == pytest.approx(math.sqrt(1e-4 * 1e2 / 10))
    assert nu(level=1e2, least=0.07, **some) == pytest.approx(0.07)


@pytest.mark.parametrize("level", [0.0, -5.0])
def test_a_loss_that_is_not_positive_is_no_measure(level):
    assert nu(promised=10.0, base=2.0, level=level, given=1.0, least=0.01) == pytest.approx(0.1)
    assert nu(promised=10.0, base=2.0, level=level) == pytest.approx(0.1)


@pytest.mark.parametrize(("level", "counts"), [(9.0, 9.0), (0.0, 1.0), (-5.0, 1.0)])
@pytest.mark.parametrize("given", [0.0, 1.0])
def test_of_an_absolute_damping_the_part_of_the_loss_alone_bounds(level, counts, given):
    assert nu(base=0.0, bends=4.0, level=level, given=given) == pytest.approx(math.sqrt(1e-4 * counts / 4))


def test_gradients_of_zeros_are_left_as_they_are():
    assert nu(promised=0.0, bends=0.0, base=0.0) == 1.0


def test_a_clip_adds_up_blocks_and_scales_once():
    g = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    rate, one, level = (torch.tensor([x], dtype=torch.float64) for x in (0.1, 1.0, 0.0))
    footing = Footing(rate, one, level, 0 * one, rate, 0.01)
    clip, grads = Clip(1e-4), [g.clone(), 2 * g]
    for x in grads:
        clip.hold([x], x.square().sum(1), footing)
        clip.add(8 * x.square().sum(1), footing)  # u = 8 g
    clip.apply(clip.total(g.device))
    assert torch.allclose(grads[0], g * 0.5 / 8)
    assert torch.allclose(grads[1], 2 * g * 0.5 / 8)


# ---------------------------------------------------------------- trainings


def trained(method, *, c=1.0, reduction="mean", loss=F.cross_entropy, momentum=0.9, steps=25):
    """Weights after some steps of SGD on a loss that is written in another way, at the rate that goes with it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    rate = 0.2 / c / (32 if reduction == "sum" else 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 5) * (1 - step / 50))
    engine = attach(model, optimizer, method)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(32, 6, dtype=torch.float64, generator=generator)
        y = torch.randint(0, 4, (32,), generator=generator)
        optimizer.zero_grad()
        value = c * loss(model(x), y, reduction=reduction)
        engine.before_backward(value)
        value.backward()
        optimizer.step()
        schedule.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "method", daily([KFAC(fisher="exact", period=3), KFAC(period=3), EKFAC(fisher="exact", period=3)], KFAC(period=3))
)
def test_how_the_loss_is_written_does_not_change_the_training(method):
    usual = trained(method)
    for written in ({"c": 1e-3}, {"c": 1e4}, {"reduction": "sum"}, {"reduction": "sum", "c": 7.0}):
        found = trained(method, **written)
        assert torch.allclose(found, usual, rtol=1e-5, atol=1e-7), written


def test_a_step_is_newtons_where_nothing_bounds_it():
    """One linear layer and a squared error: F is exact, and P g / rate is the whole damped Newton step."""
    torch.manual_seed(0)
    model = nn.Linear(5, 1, bias=False).double()
    x, y = (
        torch.randn(40, 5, dtype=torch.float64) * torch.logspace(0, -2, 5, dtype=torch.float64),
        torch.randn(40, 1).double(),
    )
    rate, before = 0.3, model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    engine = attach(model, optimizer, KFAC(damping=OfRate(0.01), fisher="exact", exact=True, clip=None, period=1))
    loss = F.mse_loss(model(x), y)
    engine.before_backward(loss)
    loss.backward()
    gradient, hessian = model.weight.grad.clone(), 2 * x.T @ x / 40
    optimizer.step()
    # Of the moving average 0.95 has not been seen: it counts as SGD's own curvature.
    step = -torch.linalg.solve(hessian + (0.01 + 0.95) / rate * torch.eye(5, dtype=torch.float64), gradient[0])
    assert torch.allclose(model.weight.detach() - before, step[None], rtol=1e-8)


@pytest.mark.parametrize("method", [KFAC(), EKFAC()])
def test_first_steps_at_the_whole_rate_are_near_to_sgds(method):
    """Factors of one batch are no curvature yet: at SGD's own rate, with no warm-up, nothing may explode."""
    found = []
    for asked in (None, method):
        torch.manual_seed(0)
        widths = [64, 120, 60, 20, 60, 120, 64]
        layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.Tanh())]
        model = nn.Sequential(*layers[:-1])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        engine = None if asked is None else attach(model, optimizer, asked)
        losses = []
        for step in range(60):
            generator = torch.Generator().manual_seed(step)
            x = torch.rand(128, 8, generator=generator) @ torch.rand(8, 64, generator=torch.Generator().manual_seed(1))
            optimizer.zero_grad()
            loss = (model(x) - x).square().sum(1).mean()
            if engine is not None:
                engine.before_backward(loss)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found.append(losses)
    alone, ours = found
    assert max(ours) <= 1.1 * max(alone)
    assert ours[-1] < alone[-1]


@pytest.mark.slow
def test_deep_linear_network_ends_below_sgd():
    def ends(method):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(6)))
        for layer in model:
            nn.init.normal_(layer.weight, std=0.2)
        target = torch.linalg.qr(torch.randn(8, 8))[0]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        engine = None if method is None else attach(model, optimizer, method)
        for step in range(200):
            x = torch.randn(64, 8, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), x @ target)
            if engine is not None:
                engine.before_backward(loss)
            loss.backward()
            optimizer.step()
        return float(loss)

    alone = ends(None)
    assert ends(KFAC()) < alone
    assert ends(EKFAC()) < alone


def test_a_damping_of_rate_is_refused_where_updates_are_bent():
    model = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match=r"KFAC\(damping=OfRate\(times=0.01\)\).*unit of SGD's learning rate"):
        attach(model, torch.optim.AdamW(model.parameters()), KFAC(damping=OfRate(0.01)))
