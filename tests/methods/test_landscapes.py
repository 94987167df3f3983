"""Methods on the whole vector at saddles, in plain loops: the steps that the mathematics asks for, and never NaN."""

import pytest
import torch
from torch import nn

from lightning_so import OGR, AutoStep, FewDirections, QuadraticModel, attach


class Loop:
    """SGD on a function of two numbers, with a method behind it."""

    def __init__(self, loss, start, method, lr):
        self.model = nn.Module()
        self.model.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.engine = attach(self.model, self.optimizer, method)
        self.loss, self.calls = loss, 0

    def closure(self):
        self.calls += 1
        self.optimizer.zero_grad()
        loss = self.loss(*self.model.w)
        loss.backward()
        return loss

    def step(self):
        """The weights before and after a step, and the gradient before it."""
        before = self.model.w.detach().clone()
        self.optimizer.step(self.closure)
        return before, self.model.w.detach().clone(), self.model.w.grad.clone()


def saddle(x, y):
    return (x**2 - y**2) / 2


def monkey(x, y):
    return x**3 - 3 * x * y**2 + (x**2 + y**2) ** 2 / 4


NEWTON = {"share": 1.0, "cap": float("inf")}
LEFT = {
    "few": FewDirections(k=2, every=1, **NEWTON),
    "regression": OGR(k=2, gamma=1.0, **NEWTON),
    "same batch": OGR(k=2, gamma=1.0, curvature="same-batch", every=1, **NEWTON),
}
ALL = [
    FewDirections(k=2, every=1),
    OGR(k=1),
    OGR(k=2),
    OGR(k=2, curvature="same-batch", every=1),
    AutoStep(every=1),
    AutoStep(every=10),
    QuadraticModel(),
]


@pytest.mark.parametrize("name", LEFT)
def test_a_saddle_is_left_at_twice_the_distance(name):
    """Newton's own step would go to the saddle in both directions (METHODS C.6, 11)."""
    loop = Loop(saddle, [1.0, 1e-3], LEFT[name], 0.1)
    for _ in range(4):  # Until both directions are known; what is not finite till then is left to SGD.
        loop.step()
    (_, y), (x_after, y_after), _ = loop.step()
    assert abs(x_after) < 1e-6
    assert y_after.item() == pytest.approx(2 * y.item(), rel=1e-5)
    assert loop.calls == 5 + loop.engine.memory.counts.evaluations


@pytest.mark.slow
@pytest.mark.parametrize("method", ALL, ids=lambda method: f"{type(method).__name__}-{getattr(method, 'every', 0)}")
def test_steps_are_bounded_where_there_is_no_curvature(method):
    still = Loop(monkey, [0.0, 0.0], method, 0.1)
    before, after, _ = still.step()
    assert torch.equal(before, after)
    loop = Loop(monkey, [-2e-2, 1e-2], method, 0.1)
    longest = 0.0
    for _ in range(100):
        before, after, gradient = loop.step()
        assert after.norm() < 10  # The minima are at 3; AutoStep went to infinity here, between looks or at them.
        longest = max(longest, 0.1 * float(gradient.norm()))
        if isinstance(method, FewDirections | OGR):
            assert (after - before).norm() <= (1 + method.share * method.cap) * longest * (1 + 1e-9)
    assert loop.engine.memory.counts.refused == 0
    if not isinstance(method, QuadraticModel):
        assert monkey(*after) < -1.0


def test_a_step_may_grow_where_the_last_one_is_parallel():
    """It was bounded by the base's step alone, so that a small learning rate stayed small."""
    loop = Loop(saddle, [0.0, 1e-3], QuadraticModel(initial=0.0, adapt=0), 1e-3)
    for _ in range(8):
        (_, y), (_, y_after), _ = loop.step()
    assert y_after.item() == pytest.approx(2 * y.item(), rel=1e-5)
