"""Residuals and their Jacobian out of the graph of a loss, and Levenberg and Marquardt on them."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from examples.pinn import PINN, Points
from lightning_so import KFAC, ConfigError, LevenbergMarquardt, MatrixFree, SecondOrder, attach
from lightning_so.linalg.least_squares import DampedLeastSquares
from lightning_so.linalg.levenberg import adapted, smoothed
from lightning_so.probe.residuals import residuals
from tests.callbacks.test_matrix_free import Save
from tests.callbacks.test_monitor import Net, fit
from tests.core.test_vector_oracle import asked
from tests.support import trainings


def net(width=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2)).double()


def points(count=7):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def laplacian(model, x):
    x = x.detach().requires_grad_()
    (du,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return sum(torch.autograd.grad(du[:, i].sum(), x, create_graph=True)[0][:, i : i + 1] for i in range(2))


def one_by_one(model, parts):
    """The Jacobian of scaled residuals, a backward pass a row."""
    params = list(model.parameters())
    rows = []
    for scale, r in parts:
        for entry in r.flatten():
            grads = torch.autograd.grad(entry, params, retain_graph=True, allow_unused=True)
            flat = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
            rows.append(scale * torch.cat([g.flatten() for g in flat]))
    return torch.stack(rows)


def mixed(model):
    """Batch statistics mix samples."""
    f = F.batch_norm(model(points()), None, None, training=True)
    return [(1.0, f)], f.square().sum() / 2


def physics(model):
    lap, f, y = laplacian(model, points()), model(points(4)), points(4).sin()
    # By torch's own function, by hand, and with weights.
    r = f - y
    loss = lap.square().mean() + 3 * F.mse_loss(f, y) + 0.5 * (r * r).sum()
    return [(math.sqrt(2 / 7), lap), (math.sqrt(6 / 8), r), (1.0, r)], loss


def sequences(model):
    f = model(torch.stack([points(), points().cos()], 1))
    return [(math.sqrt(2 / 28), f)], (f**2).mean()


def decayed(model):
    w, f = model[0].weight, model(points())
    return [(math.sqrt(0.2), w), (math.sqrt(2 / 14), f)], 0.1 * w.square().sum() + f.square().mean()


def moving_target(model):
    f, target = model(points()), model(points() + 1)
    return [(math.sqrt(2 / 14), f - target)], F.mse_loss(f, target)


def pairs(model):
    """Two samples a residual."""
    f = model(points(14))
    return [(math.sqrt(2 / 14), f[:7] - f[7:])], (f[:7] - f[7:]).square().mean()


#: By name: the loss, and how many of its residuals are had by row.
LOSSES = {
    "physics": (physics, 7 + 8 + 8),
    "sequences": (sequences, 28),
    "decayed": (decayed, 14),
    "mixed": (mixed, 0),
    "moving target": (moving_target, 14),
    "pairs": (pairs, 0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_residuals_are_those_of_the_loss(name):
    make, by_row = LOSSES[name]
    model = net()
    parts, loss = make(model)
    found = residuals(lambda: make(model)[1], list(model.parameters()), "Test")
    assert float(found.values.square().sum() / 2) == pytest.approx(float(loss.detach()), rel=1e-12)
    expected = one_by_one(model, parts)
    assert found.by_row == by_row
    # In which order loss functions are met is not said, nor is the sign of a residual.
    gram, other = found.jacobian.mT @ found.jacobian, expected.mT @ expected
    torch.testing.assert_close(gram, other, rtol=1e-10, atol=1e-12)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(found.jacobian.mT @ found.values, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda f: F.cross_entropy(f, torch.zeros(7, dtype=torch.int64)), "this loss has LogSoftmaxBackward0"),
        (lambda f: f.square().sum() - (f + 1).square().mean(), "with a negative weight"),
        (lambda f: f.abs().sum(), "made with AbsBackward0"),
    ],
)
def test_what_is_no_least_squares_is_refused(loss, message):
    model = net()
    with pytest.raises(ConfigError, match=message):
        residuals(lambda: loss(model(points())), list(model.parameters()), "Test")


def test_a_jacobian_that_is_too_large_is_refused_before_it_is_made():
    model = nn.Linear(2, 5000)
    with pytest.raises(ConfigError, match=r"of 50,000 residuals in 15,000 weights has 750,000,000 numbers"):
        residuals(lambda: model(torch.ones(10, 2)).square().mean(), list(model.parameters()), "Test")


@pytest.mark.slow
def test_a_compiled_model_is_refused():
    model = torch.compile(net(), backend="aot_eager")
    with pytest.raises(ConfigError, match=r"leave torch\.compile out"):
        residuals(lambda: model(points()).square().mean(), list(model.parameters()), "Test")


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_damped_least_squares_is_the_dense_solution(shape):
    generator = torch.Generator().manual_seed(0)
    J, r = torch.randn(*shape, generator=generator).double(), torch.randn(shape[0], generator=generator).double()
    system = DampedLeastSquares(J, r)
    for damping in (1e-3, 1.0):
        found = system.solve(damping)
        expected = -torch.linalg.solve(J.mT @ J + damping * torch.eye(shape[1]), J.mT @ r)
        assert found.ok
        torch.testing.assert_close(found.value, expected, rtol=1e-9, atol=1e-11)
        foretold = ((J @ expected + r).square().sum() - r.square().sum() + damping * expected.square().sum()) / 2
        assert system.change(expected, damping) == pytest.approx(float(foretold), rel=1e-10)
    assert not DampedLeastSquares(torch.zeros(2, 3), torch.ones(2)).solve(0.0).ok
    assert not DampedLeastSquares(torch.full((2, 3), float("nan")), torch.ones(2)).solve(1.0).ok


def test_the_rule_of_levenberg_and_marquardt():
    damping = 1.0
    for step in range(1, 4):  # A quadratic loss is foretold exactly.
        damping = adapted(damping, 1.0)
        assert damping == pytest.approx((2 / 3) ** step)
    assert adapted(1.0, -1.0) == adapted(1.0, float("nan")) == 1.5
    assert smoothed(1.0, 0.5, 8.0) == (1.0, 2.0)
    assert smoothed(1.0, float("nan"), 2.0) == (2.0, 4.0)


def descended(loss, model, steps, method=None, lr=1.0):
    """Losses of some steps in a plain loop, and the engine."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    engine = attach(model, optimizer, method or LevenbergMarquardt())
    found = []

    def closure():
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        found.append(float(value.detach()))
        return value

    for _ in range(steps):
        optimizer.step(closure)
    return found, engine


def test_a_linear_model_is_fitted_in_one_step():
    torch.manual_seed(0)
    model = nn.Linear(2, 1).double()
    x = points()
    y = x @ torch.tensor([[1.0], [-2.0]]).double() + 0.5
    _, engine = descended(lambda m: F.mse_loss(m(x), y), model, 1, LevenbergMarquardt(initial=0.0))
    assert float(F.mse_loss(model(x), y).detach()) < 1e-25
    assert engine.scalars()["curv/reduction_ratio"] == pytest.approx(1.0)


def test_rosenbrock_is_left_by_its_valley():
    """The squares 10 (y - x^2) and 1 - x, from (-1.2, 1): Gauss and Newton alone leave the valley, damping does not."""
    model = nn.ParameterList([nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))])

    def loss(model):
        x, y = model[0]
        return (10 * (y - x * x)).square() + (1 - x).square()

    found, engine = descended(loss, model, 25)
    steps = found[:1] + [value for value in found if value < found[0]]
    assert min(found) < 1e-20
    assert len(steps) > 10
    assert engine.scalars()["curv/rejected"] == 0


def test_a_network_learns_physics_and_a_step_never_goes_up():
    model = net(16)
    x = points(40)

    def loss(model):
        return (laplacian(model, x) + x.sin().sum(1, keepdim=True)).square().mean() + model(x[:9]).square().mean()

    after = []
    for _ in range(15):
        found, engine = descended(loss, model, 1)
        after.append(found[0])
        engine.detach()
    assert after == sorted(after, reverse=True)
    assert after[-1] < 1e-3 * after[0]
    assert engine.scalars()["curv/by_row"] == 40 + 18


def test_a_minimum_is_not_left():
    model = net()
    start = [p.detach().clone() for p in model.parameters()]
    y = model(points()).detach()
    # Residuals of 1 and -1: the gradient is rounding, and no step lowers the loss.
    found, engine = descended(lambda m: F.mse_loss(m(points()), y + 1) + F.mse_loss(m(points()), y - 1), model, 2)
    assert found[0] == pytest.approx(2.0)
    for param, before in zip(model.parameters(), start, strict=True):
        torch.testing.assert_close(param.detach(), before, rtol=0, atol=1e-6)
    assert engine.scalars()["curv/failed"] == 0


def test_damping_is_relative_to_the_first_jacobian():
    scales = []
    for steps in (1, 3):
        _, engine = descended(lambda m: laplacian(m, points()).square().mean(), net(), steps)
        scales.append(float(engine.state.numbers["scale"]))
    assert scales[0] == scales[1] > 0


def test_the_schedule_scales_the_step():
    torch.manual_seed(0)
    model = nn.Linear(2, 1).double()
    start = model.weight.detach().clone()
    x, y = points(), points().sum(1, keepdim=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    optimizer.param_groups[0].update(initial_lr=0.3, lr=0.15)
    attach(model, optimizer, LevenbergMarquardt(initial=0.0))

    def closure():
        optimizer.zero_grad()
        value = F.mse_loss(model(x), y)
        value.backward()
        return value

    optimizer.step(closure)
    expected = start + (torch.ones(1, 2).double() - start) / 2
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-9, atol=1e-12)


def trained(strategy, path=None, resume=None, steps=6, accelerator="cpu"):
    """The weights of a physics-informed network after some steps in a Trainer, float64."""
    pl.seed_everything(0, verbose=False)
    module = PINN(width=8, depth=2).double()
    callbacks = [MatrixFree(LevenbergMarquardt(), verbose=False), *([] if path is None else [Save(path, 3)])]
    alone = strategy == "one"
    trainer = pl.Trainer(
        accelerator=accelerator,
        strategy="auto" if alone else trainings.made(strategy, None),
        devices=1 if alone else 2,
        plugins=[] if alone else [trainings.Standing()],
        precision="64-true",
        max_steps=steps,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, Points(boundary=16, double=True), ckpt_path=resume)
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_ranks_take_the_steps_of_one_process(two):
    expected = trained("one")
    for found in two.run(trained, "ddp"):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_a_resumed_training_is_the_same_bit_for_bit(tmp_path):
    expected = trained("one", tmp_path / "saved.ckpt")
    found = trained("one", resume=tmp_path / "saved.ckpt")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def gathered(ranks):
    return asked("mse", lambda step: step.oracle.residuals().jacobian.shape, None, ranks)


def test_every_rank_has_all_rows(two):
    assert gathered(1) == (18, 31)
    for found in two.run(_gathered):
        assert found == (18, 31)


def _gathered():
    return gathered(2)


class Forgetful(nn.Linear):
    """Draws noise from a generator of its own."""

    def forward(self, x):
        self.own = getattr(self, "own", torch.Generator().manual_seed(0))
        return super().forward(x) + torch.rand(1, generator=self.own, dtype=torch.float64)


def test_what_cannot_work_is_refused(two):
    x = points()
    large = nn.Linear(200, 200)
    with pytest.raises(ConfigError, match=r"there are 40,200; allowed are 20,000\. Use NewtonCG"):
        attach(large, torch.optim.SGD(large.parameters(), lr=1.0), LevenbergMarquardt())
    with pytest.raises(ConfigError, match="finds step size and momentum itself"):
        attach(large, torch.optim.Adam(large.parameters()), LevenbergMarquardt())
    model = net()
    with pytest.raises(ConfigError, match="SGD with momentum=0"):
        attach(model, torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9), LevenbergMarquardt())
    with pytest.raises(ConfigError, match=r"weight_decay=0.1 is not in it"):
        attach(model, torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1), LevenbergMarquardt())
    with pytest.raises(ConfigError, match="gave losses"):
        descended(lambda m: m(x).square().mean(), Forgetful(2, 2).double(), 2)
    with pytest.raises(ConfigError, match=r"what KFAC does to the gradient would be lost"):
        fit(Net(torch.optim.SGD), [SecondOrder(KFAC(), print_plan=False), MatrixFree(LevenbergMarquardt())])
    with pytest.raises(ConfigError, match=r"gradient_clip_val=0\.5 would do nothing"):
        fit(Net(torch.optim.SGD), [MatrixFree(LevenbergMarquardt())], gradient_clip_val=0.5)

    def twice(model):
        loss = model(x).square().mean()
        loss.backward(retain_graph=True)
        return loss

    with pytest.raises(ConfigError, match=r"calls `backward\(\)` 2 times"):
        descended(twice, net(), 1)
    with pytest.raises(AssertionError, match="needs the Jacobian of whole parameters"):
        two.run(_in_pieces)


def _in_pieces():
    base = (torch.optim.SGD, {"lr": 1.0})
    trainings.train("fsdp2", None, base, 1, callbacks=[MatrixFree(LevenbergMarquardt(), verbose=False)])
