"""Saddle-free Newton in a Krylov subspace, against what the mathematics of small problems says."""

import copy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_so import ConfigError, SaddleFreeKrylov, attach
from lightning_so.linalg.vectors import Piece, Space
from lightning_so.methods.saddle_free import subspace


class Loop:
    """SGD on a function of a few numbers, with the method behind it."""

    def __init__(self, loss, start, **settings):
        self.model = nn.Module()
        self.model.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.engine = attach(self.model, self.optimizer, SaddleFreeKrylov(**settings))
        self.loss = loss

    def closure(self):
        self.optimizer.zero_grad()
        loss = self.loss(self.model.w)
        loss.backward()
        return loss

    def step(self, steps=1):
        for _ in range(steps):
            self.optimizer.step(self.closure)
        return self.model.w.detach().clone()

    @property
    def numbers(self):
        return self.engine.state.numbers


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quadratic(eigenvalues):
    """`x'Hx / 2` with a dense H."""
    Q = torch.linalg.qr(normal(1, len(eigenvalues), len(eigenvalues))).Q
    H = Q * torch.tensor(eigenvalues, dtype=torch.float64) @ Q.mT
    return lambda w: w @ (H @ w) / 2


def saddle(w):
    return (w[0] ** 2 - w[1] ** 2) / 2


def monkey(w):
    x, y = w
    return x**3 - 3 * x * y**2 + (x**2 + y**2) ** 2 / 4


EIGENVALUES = [1.0, 1.0, 3.0, 3.0, 3.0, 10.0]


def test_one_step_to_the_minimum_where_there_are_as_many_directions_as_eigenvalues():
    """Three of the Krylov space are enough for three eigenvalues; two of it are not."""
    start = normal(2, 6).tolist()
    enough = Loop(quadratic(EIGENVALUES), start, m=4, damping=0.0).step()
    assert float(enough.norm()) < 1e-5
    few = Loop(quadratic(EIGENVALUES), start, m=3, damping=0.0).step()
    assert float(few.norm()) > 1e-2


def test_the_last_step_is_a_direction_of_its_own():
    """Two directions are those of conjugate gradients then: in three steps at the minimum for three eigenvalues."""
    loop = Loop(quadratic(EIGENVALUES), normal(2, 6).tolist(), m=2, damping=0.0)
    assert float(loop.step(2).norm()) > 1e-2
    assert float(loop.step().norm()) < 1e-5
    assert int(loop.numbers["directions"]) == 2


def test_a_saddle_is_left_at_twice_the_distance():
    """Newton's own step would go to the saddle in both directions (METHODS C.6, 11)."""
    x, y = Loop(saddle, [1.0, 1e-3], damping=0.0).step()
    assert abs(x) < 1e-5
    assert y.item() == pytest.approx(2e-3, rel=1e-3)


def test_damping_shortens_both_the_way_down_and_the_way_out():
    x, y = Loop(saddle, [1.0, 1e-3], damping=1.0).step()
    assert x.item() == pytest.approx(0.5, rel=1e-3)
    assert y.item() == pytest.approx(1.5e-3, rel=1e-3)


def test_steps_are_bounded_where_there_is_no_curvature():
    still = Loop(monkey, [0.0, 0.0])
    assert still.step().tolist() == [0.0, 0.0]
    for radius in (1e-9, 1e-2):
        loop = Loop(monkey, [-2 * radius, radius])
        before = loop.model.w.detach().clone()
        for _ in range(60):
            after = loop.step()
            assert float(after.norm()) < 10
            assert float(monkey(after)) <= float(monkey(before))
            before = after
    assert float(monkey(after)) < -6.7


def test_where_nothing_curves_the_step_is_finite():
    loop = Loop(lambda w: w @ torch.tensor([1.0, 2.0], dtype=torch.float64), [1.0, 1.0])
    assert bool(loop.step(3).isfinite().all())


def test_damping_shrinks_by_two_thirds_where_the_model_is_right():
    loop = Loop(quadratic(EIGENVALUES), normal(2, 6).tolist(), m=2)
    found = []
    for _ in range(4):
        loop.step()
        found.append(float(loop.numbers["damping"]))
    assert [after / before for before, after in pairwise(found)] == pytest.approx([2 / 3] * 3, rel=1e-9)
    assert float(loop.numbers["ratio"]) > 0.99


class Against(torch.autograd.Function):
    """A loss that is minus the one of which it gives the gradient."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return -(w @ w) / 2

    @staticmethod
    def backward(ctx, grad):
        (w,) = ctx.saved_tensors
        return grad * w


def test_a_step_that_does_not_lower_the_loss_is_not_taken():
    start = [1.0, 2.0]
    loop = Loop(Against.apply, start, trials=3)
    assert loop.step().tolist() == start
    assert float(loop.numbers["damping"]) == pytest.approx(4**3, rel=1e-6)
    assert int(loop.numbers["rejected"]) == 3
    evaluations, forwards = loop.engine.memory.counts.evaluations, loop.engine.memory.counts.forwards
    assert (evaluations, forwards) == (3 + 1, 1 + 3)  # Of the examination three; g spans a Krylov space of its own.
    assert float(loop.engine.state.vectors["last"].norm()) == 0


def test_a_step_that_is_too_long_is_tried_again_with_more_damping():
    """Of `log cosh` the parabola at 2 leads to -12, and uphill."""
    loop = Loop(lambda w: w.cosh().log().sum(), [2.0], damping=0.0)
    assert abs(float(loop.step())) < 2.0  # From damping that did nothing.
    assert int(loop.numbers["rejected"]) > 0
    assert float(loop.numbers["damping"]) > 0


def test_a_loss_that_is_not_finite_is_no_step():
    loop = Loop(lambda w: (w - w.log()).sum(), [3.0], damping=0.0)
    for _ in range(5):
        assert float(loop.step()) > 0
    assert float(loop.step(15)) == pytest.approx(1.0, rel=1e-4)


def test_a_product_that_is_not_finite_is_no_step():
    loop = Loop(lambda w: -(1 - w).sqrt().sum(), [1 - 1e-9])
    assert loop.step().tolist() == [1 - 1e-9]
    assert int(loop.numbers["failed"]) == 1


def test_products_before_one_that_is_not_finite_are_used():
    H, calls = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)), iter([1.0, float("nan"), 1.0])
    batch = SimpleNamespace(products=lambda V: next(calls) * V @ H)
    gradient, last = normal(3, 3), normal(4, 3)
    V, T, whole = subspace(4, gradient, last, batch, Space((Piece("w", 0, 3, 3),), dtype=torch.float64))
    assert len(V) == 2
    assert not whole
    torch.testing.assert_close(T, V @ H @ V.mT)


def test_nothing_depends_on_the_axes_or_on_the_scale_of_the_loss():
    turn = torch.linalg.qr(normal(5, 2, 2)).Q
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)

    def rosenbrock(w):
        return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2

    plain = Loop(rosenbrock, start.tolist()).step(6)
    turned = Loop(lambda w: rosenbrock(turn @ w), (turn.mT @ start).tolist()).step(6)
    scaled = Loop(lambda w: 1e6 * rosenbrock(w), start.tolist()).step(6)
    torch.testing.assert_close(turn @ turned, plain, rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-4)


def test_the_schedule_of_the_base_is_kept():
    whole, half = (Loop(quadratic(EIGENVALUES), normal(2, 6).tolist(), m=4, damping=0.0) for _ in range(2))
    start = half.model.w.detach().clone()
    scheduler = torch.optim.lr_scheduler.LambdaLR(half.optimizer, lambda _: 0.5)
    assert scheduler.get_last_lr() == [0.05]
    torch.testing.assert_close(half.step() - start, 0.5 * (whole.step() - start))


def test_constant_curvature_is_one_stride_along_the_gradient():
    loop = Loop(quadratic(EIGENVALUES), normal(2, 6).tolist(), m=4, damping=1.0, curvature="constant")
    start = loop.model.w.detach().clone()
    after = loop.step()
    gradient = loop.model.w.grad.clone()
    assert float(torch.cosine_similarity(start - after, gradient, dim=0)) == pytest.approx(1.0, abs=1e-9)


def test_one_number_and_one_direction():
    loop = Loop(lambda w: w.square().sum() / 2, [3.0], damping=0.0)
    assert abs(float(loop.step())) < 1e-5
    assert int(loop.numbers["directions"]) == 1


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match=r"SaddleFreeKrylov\(m=1\): m must be an integer in \[2, 1000\]"):
        SaddleFreeKrylov(m=1)
    with pytest.raises(ConfigError, match=r"damping must be a number"):
        SaddleFreeKrylov(damping=-1.0)
    model = nn.Linear(2, 1)
    for base in (torch.optim.Adam(model.parameters()), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)):
        with pytest.raises(ConfigError, match="finds step size and momentum itself"):
            attach(model, base, SaddleFreeKrylov())


def test_what_it_does_is_seen():
    loop = Loop(saddle, [1.0, 1e-3])
    loop.step()
    found = loop.engine.scalars()
    assert found["curv/lambda_max"] == pytest.approx(1.0, rel=1e-4)
    assert found["curv/lambda_min"] == pytest.approx(-1.0, rel=1e-4)
    assert found["curv/directions"] == 2
    assert found["curv/damping"] == pytest.approx(0.1 / 1.5, rel=1e-4)
    assert copy.deepcopy(loop.engine.state_dict())["method"] == loop.engine.state_dict()["method"]
