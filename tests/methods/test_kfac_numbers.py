"""K-FAC where numbers are scaled, zero, singular or not finite, and where arguments are bad."""

import math
from unittest import mock

import pytest
import torch

from lightning_so import EKFAC, KFAC, ConfigError, Relative, attach
from lightning_so.contract.block import Use
from lightning_so.core.trust.memory import state_bytes
from lightning_so.linalg import psd
from tests.methods.test_kfac import EXACT, close, data, factors, linears, losses, matrix, net, stats_of, step
from tests.support import noted

# ---------------------------------------------------------------- one loss, written in many ways


def five_steps(cls, method, way, lr=0.02):
    """Weights and factors after five steps with a loss that is written in another way."""
    torch.manual_seed(0)
    model = net()
    # Adam's epsilon is no part of the question: it does not scale with the loss.
    optimizer = cls(model.parameters(), lr=lr, **({} if cls is torch.optim.SGD else {"eps": 1e-30}))
    engine = attach(model, optimizer, method)
    for t in range(5):
        x, y = data(8, seed=t)
        optimizer.zero_grad()
        if way == "micro":
            for rows in torch.arange(8).chunk(4):
                (losses(model, x[rows], y[rows]).mean() / 4).backward()
        elif way == "scaled":
            engine.recorders[0].facts.scale = 1000.0 * 3**t
            (losses(model, x, y).mean() * engine.recorders[0].facts.scale).backward()
            for p in model.parameters():
                p.grad /= engine.recorders[0].facts.scale
        else:
            getattr(losses(model, x, y), way)().backward()
        optimizer.step()
    assert engine.report.preconditioned + engine.report.bent == 3
    return [matrix(layer) for layer in linears(model).values()], [factors(engine, name) for name in linears(model)]


@EXACT
@pytest.mark.parametrize("way", ["micro", "scaled"])
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_micro_batches_and_a_scaled_loss_change_nothing(cls, way, exact):
    method = KFAC(damping=0.01, exact=exact, clip=1e-2, period=1)
    for one, other in zip(five_steps(cls, method, "mean"), five_steps(cls, method, way)):
        for a, b in zip(one, other):
            for F, H in zip(a, b):
                close(H, F)


@EXACT
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_a_summed_loss_with_its_learning_rate_and_relative_damping_gives_the_weights_of_a_mean(cls, exact):
    method = KFAC(damping=Relative(0.1), exact=exact, clip=None, period=1)
    weights, sides = five_steps(cls, method, "mean")
    # P of a loss that is 8 times as large is 64 times as small; the length under Adam is Adam's.
    summed, scaled = five_steps(cls, method, "sum", lr=0.16 if cls is torch.optim.SGD else 0.02)
    for a, b in zip(weights, summed):
        close(b, a)
    for (A, G), (A8, G8) in zip(sides, scaled):
        close(A8, A)
        close(G8, 64 * G)  # The sum over 8 samples is read as the mean of losses that are 8 times as large.


# ---------------------------------------------------------------- bad arguments, bad numbers


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("damping", 0),
        ("damping", -1),
        ("damping", math.nan),
        ("damping", Relative(0.0)),
        ("sharing", "x"),
        ("period", 0),
        ("clip", 0),
        ("rows", 0),
        ("cap", 1),
    ],
)
def test_a_bad_argument_is_refused_by_name(argument, value):
    with pytest.raises(ConfigError, match=f"KFAC.*{argument}"):
        KFAC(**{argument: value})


@pytest.mark.parametrize("cls", [torch.optim.RMSprop, torch.optim.Adagrad])
def test_a_base_without_a_first_moment_is_refused_by_name(cls):
    model = net()
    with pytest.raises(ConfigError, match=f"KFAC on {cls.__name__}.*use SGD, Adam or AdamW") as said:
        attach(model, cls(model.parameters()), KFAC())
    noted.refused(said, method="KFAC", base=cls.__name__)


@EXACT
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_a_factor_that_is_not_finite_is_counted_and_the_last_inverse_stays(cls, exact):
    model = net()
    engine = attach(model, cls(model.parameters(), lr=1e-2), KFAC(exact=exact, period=1))
    for t in range(7):
        if t == 2:
            stats, row = stats_of(engine, "0.weight")
            stats.sides[0].factors[0][row, 0, 1, 1] = math.nan
            solved = [part[row].clone() for side in stats.solved for part in side.tensors]
        step(engine, losses(model, *data(seed=t)).mean())
        # The plain solve fails at step 2, those afresh from step 3 on: the next step learns it, a cold block at once.
        assert engine.report.failures == (0, 0, 0, 0, 1, 2, 4)[t]
        assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert engine.report.cooled == 1  # after three failures in a row
    for old, new in zip(solved, (part[row] for side in stats.solved for part in side.tensors)):
        assert torch.equal(old, new)
    assert engine.report.preconditioned + engine.report.bent == 2


@pytest.mark.parametrize(
    ("cls", "damping", "exact"),
    [
        (torch.optim.SGD, 0.01, False),
        (torch.optim.SGD, 0.01, True),
        (torch.optim.SGD, Relative(1.0), False),
        (torch.optim.SGD, Relative(1.0), True),
        (torch.optim.AdamW, Relative(1.0), False),
        (torch.optim.AdamW, Relative(1.0), True),
    ],
)
@pytest.mark.parametrize("zero", ["head", "inputs"])
def test_a_zero_factor_leaves_finite_weights_that_train(zero, cls, damping, exact):
    model, (x, y) = net(bias=zero == "head"), data()
    with torch.no_grad():
        model[4].weight.zero_()  # Then no gradient reaches the other layers at the first step.
    engine = attach(model, cls(model.parameters(), lr=1e-2), KFAC(damping=damping, exact=exact, period=1))
    for t in range(4):
        step(engine, losses(model, 0 * x if zero == "inputs" and t == 0 else x, y).mean())
        assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert engine.report.skipped == 0
    assert engine.report.preconditioned + engine.report.bent == 3


def test_the_ladder_of_damping_raises_nothing():
    eye, ones = torch.eye(4, dtype=torch.float64), torch.ones(1, 8, 8)
    d = torch.tensor([0.01], dtype=torch.float64)
    v = torch.randn(4, 1, dtype=torch.float64)
    singular = psd.inverse((v @ v.mT)[None], d)
    assert (singular.ok, singular.attempts) == (True, 1)
    close(singular.value[0], torch.linalg.inv(v @ v.mT + 0.01 * eye))
    for lowest, attempts in ((-0.005, 1), (-0.05, 2), (-0.5, 3)):
        F = eye.clone()
        F[3, 3] = lowest
        result = psd.inverse(F[None], d)
        assert (result.ok, result.attempts) == (True, attempts)
        close(result.value[0], torch.linalg.inv(F + 0.01 * 10 ** (attempts - 1) * eye))
    # In float32 the damping is lost in the ones; the fourth rung, the first in float64, keeps it.
    result = psd.inverse(ones, torch.tensor([1e-10]))
    assert (result.ok, result.attempts, result.value.dtype) == (True, 4, torch.float32)
    close(result.value.double(), torch.linalg.inv(ones.double() + 1e-10 * torch.eye(8, dtype=torch.float64)), 1e-4)


@pytest.mark.parametrize("entry", [math.nan, math.inf, -100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hopeless_factor_is_data_and_no_exception(entry, dtype):
    F = torch.eye(3, dtype=dtype).repeat(2, 1, 1)
    F[1, 1, 1] = entry
    result = psd.inverse(F, torch.full((2,), 0.01, dtype=dtype))
    assert (result.ok, result.attempts) == (False, 6 if dtype is torch.float32 else 3)
    assert not psd.inverse(torch.eye(3)[None], torch.tensor([math.nan])).ok
    assert not psd.inverse(torch.zeros(1, 3, 3), torch.tensor([0.0])).ok
    if entry != -100.0:
        assert psd.eigenbasis(F)[2].tolist() == [True, False]


@pytest.mark.slow
def test_windows_exist_while_their_layers_are_watched():
    model, (x, y) = net(sizes=(3, 4, 4, 4, 2)), data()
    engine = attach(model, torch.optim.SGD(model.parameters(), lr=1e-2), KFAC(period=16))
    between, before = [], []
    for number in range(200):
        watched = {engine.stacks[s].blocks[row].name for s, row in engine.recorders[0].seen.watched}
        engine.optimizer.zero_grad()
        losses(model, x, y).mean().backward()
        made = {s.blocks[row].name for s in engine.stacks for side in s.stats.sides for row in side.windows}
        assert made == watched
        before.append(state_bytes(engine.parts.units, engine.parts.matrices))
        if number == 40:
            model[0].weight.grad[0, 0] = float("nan")  # a step that is skipped forgets what it has seen
        engine.optimizer.step()
        assert not any(side.windows for stack in engine.stacks for side in stack.stats.sides)
        between.append(state_bytes(engine.parts.units, engine.parts.matrices))
    # At first every layer is watched at every step, at the largest interval at every fourth, each at its own.
    gained = [full - empty for full, empty in zip(before[1:], between)]
    assert 4 * sum(gained[-16:]) == 16 * gained[1]
    assert max(gained[-16:]) < gained[1]


ADAMW, SGD = torch.optim.AdamW, torch.optim.SGD


@pytest.mark.parametrize(
    ("base", "method", "rows"),
    [
        (ADAMW, KFAC(), 512),
        (ADAMW, EKFAC(cap=64), 256),
        (ADAMW, KFAC(rows=64), 64),
        (ADAMW, KFAC(sharing="reduce"), 4096),
        (SGD, KFAC(), 4096),
        (SGD, KFAC(rows=2048), 2048),
    ],
)
def test_how_many_rows_build_a_factor(base, method, rows):
    net = torch.nn.Sequential(torch.nn.Linear(5, 512))
    engine = attach(net, base(net.parameters(), lr=1e-2), method)
    (stack,) = engine.stacks
    use = Use(torch.ones(8192, 5), torch.ones(8192, 512), 1.0, 8192.0, 3)
    with mock.patch("lightning_so.linalg.sides.Side.add") as add:
        method.collect(stack.stats, 0, stack.blocks[0], use)
    assert [call.args[1].shape[1] for call in add.call_args_list] == [rows, rows]
    assert [call.args[2] for call in add.call_args_list] == [8192 / rows] * 2  # Sums are those of all.
