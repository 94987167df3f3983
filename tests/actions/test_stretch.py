"""*Stretch*: bent updates are longer than the base's while the loss falls straight along them, and not for noise."""

import copy

import pytest
import torch
from torch import nn

from lightning_so import SOAP, ConfigError, Muon, SecondOrder, attach
from lightning_so.actions import stretch
from lightning_so.core.step import slopes
from lightning_so.linalg.polar import polar
from tests.support.daily import one_in
from tests.support.problems import Net, train

RATE = 1e-2


def matrix(gradient_of, steps, *, method=None, base=torch.optim.AdamW, lr=RATE, **options):
    """A 5x4 matrix in float64 trained on gradients of its own; it, the optimizer, the engine and s of every step."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 5, bias=False, dtype=torch.float64)
    named = {"momentum": 0.9} if base is torch.optim.SGD else {"weight_decay": 0.0}
    optimizer = base(layer.parameters(), lr=lr, **named)
    engine, times = attach(layer, optimizer, method or Muon(), **options), []
    for step in range(1, steps + 1):
        layer.weight.grad = gradient_of(layer.weight.detach(), step)
        optimizer.step()
        slopes = engine.stacks[0].slopes
        times.append(1.0 if slopes is None else float(slopes.times[0]))
    return layer, optimizer, engine, times


def drawn(*numbers):
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(hash(numbers) % 1000), dtype=torch.float64)


def falling():
    """Directions of curvature whose spectrum falls by four decades."""
    Q, _ = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    return Q @ torch.logspace(0, -4, 20, dtype=torch.float64).diag() @ Q.T


# ---------------------------------------------------------------- the numbers


def test_along_a_quadratic_the_first_bound_is_where_the_loss_is_least():
    H, p, D = falling(), drawn(1).flatten(), -drawn(2).flatten()
    g = H @ p
    D = D if float(g @ D) < 0 else -D
    u = -0.3 * g
    opened = torch.stack([g @ D, D @ D, g @ u / u.norm()])[None]
    sample, means = stretch.sampled(opened, (H @ (p + D) @ D)[None]), torch.zeros(1, 4, dtype=torch.float64)
    for _ in range(3):
        means = stretch.learned(means, sample)
    far, most = stretch.bounds(means, sample, torch.tensor([9.0]))[0]
    least = -(g @ D) / (D @ H @ D)  # of the loss at p + t D, over t
    torch.testing.assert_close(far, least * D.norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(most, stretch.REACH * (g @ u / u.norm()) / (g @ D / D.norm()), rtol=1e-12, atol=0)
    assert float(means[0, 3]) == 3


def test_too_few_samples_and_steps_that_promise_nothing_are_no_measure():
    means = torch.tensor([[1.0, 0, 9, 2], [-1.0, 0, 9, 9], [0.0, 0, 9, 9], [1.0, 0, 9, 3]])
    bounds = stretch.bounds(means, means[:, :3], 5 * torch.ones(4))
    assert stretch.stretched(bounds, torch.ones(4)).tolist() == [1.0, 1.0, 1.0, stretch.MOST]


def test_it_grows_step_by_step_and_one_step_that_went_too_far_ends_it():
    means, straight = torch.tensor([[1.0, 0, 9, 9]]), torch.tensor([[1.0, 0, 9]])
    grown = stretch.stretched(stretch.bounds(means, straight, torch.tensor([2.0])), torch.ones(1))
    assert float(grown) == pytest.approx(2 * stretch.GROWTH)
    beyond = torch.tensor([[1.0, 2, 9]])  # the slope at its end is as steep upwards
    assert float(stretch.stretched(stretch.bounds(means, beyond, torch.tensor([2.0])), torch.ones(1))) == 1


def test_a_slope_that_is_not_finite_and_a_step_that_did_not_move_are_no_samples():
    means = torch.rand(3, 4)
    opened = torch.tensor([[-1.0, 1.0, -1.0], [torch.nan, 1.0, -1.0], [0.0, 0.0, 0.0]])
    found = stretch.learned(means, stretch.sampled(opened, torch.ones(3)))
    assert torch.equal(found[1:], means[1:])
    assert not torch.equal(found[0], means[0])


# ---------------------------------------------------------------- of a training


def test_every_step_is_that_of_the_equations():
    """By hand, in float64: gradients that change, slopes at odd steps and after them, polar factors by SVD."""
    _, _, _, times = matrix(lambda p, step: 0.3 * p + drawn(step) / 8 + drawn(0), 30, method=Muon(steps=5))
    torch.manual_seed(0)
    p = nn.Linear(4, 5, bias=False, dtype=torch.float64).weight.detach()
    m, v, known, samples, opened, expected = (torch.zeros_like(p), torch.zeros_like(p), [0.0] * 3, 0, None, [])
    far = most = 0.0
    for step in range(1, 31):
        g = 0.3 * p + drawn(step) / 8 + drawn(0)
        if opened is not None:
            first, base, D = opened
            length = D.norm()
            P, E = -first / length, -(g * D).sum() / length
            sample, samples = (P, (P - E) / length, -base), samples + 1
            known = [0.8 * old + 0.2 * float(new) for old, new in zip(known, sample, strict=True)]
            if samples >= 3 and known[0] > 0:
                far = min(float(P / Q) if Q > 0 else 1e9 for P, Q, _ in (known, sample))
                most = min(1.5 * known[2] / known[0], 1.4 * expected[-1])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = -RATE * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        s = min(max(1.0, min(far / float(u.norm()), most)), 5.0)
        d = polar((0.9 * m + 0.1 * g)[None])[0]
        D = -s * u.norm() * d / d.norm()
        opened = ((g * D).sum(), (g * u).sum() / u.norm(), D) if step % 2 else None
        p = p + D
        expected.append(s)
    assert max(expected) > 1.2
    assert expected[:5] == [1.0] * 5
    torch.testing.assert_close(torch.tensor(times), torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_a_straight_way_is_gone_faster_and_the_base_s_promise_bounds_it():
    layer, *_, times = matrix(lambda p, step: drawn(0), 20)
    kept, *_, ones = matrix(lambda p, step: drawn(0), 20, lengths="base")
    assert ones == [1.0] * 20
    assert 1 < times[-1] < stretch.MOST
    g, d = drawn(0), polar(drawn(0)[None])[0]
    promise = float((g * d).sum() / d.norm())
    base = float(g.abs().sum() / 20**0.5)  # Adam's update of a constant gradient is its sign
    assert times[-1] == pytest.approx(stretch.REACH * base / promise, rel=1e-3)
    assert float((layer.weight * g).sum()) < float((kept.weight * g).sum())


def test_noise_leaves_the_base_s_length():
    """What the gradient's own noise promises of a step the next gradient does not keep."""
    torch.manual_seed(0)
    layer = nn.Linear(96, 128, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=RATE)
    engine, times = attach(layer, optimizer, Muon()), []
    for _ in range(60):
        layer.weight.grad = torch.randn(128, 96)
        optimizer.step()
        times.append(float(engine.stacks[0].slopes.times))
    assert max(times[20:]) < 1.1


def test_where_the_loss_is_least_steps_have_the_base_s_length():
    *_, near = matrix(lambda p, step: 300 * (p - 0.1), 40, lr=0.3)
    *_, far = matrix(lambda p, step: 300 * (p - 0.1), 20, lr=0.003)
    assert max(far) > 1.2
    assert sum(near) < 1.05 * 40


def test_a_linear_base_keeps_its_length():
    """SGD's own update promises most: any other would be longer for ever."""
    *_, engine, times = matrix(lambda p, step: drawn(0), 12, base=torch.optim.SGD)
    assert engine.stacks[0].slopes is None
    assert times == [1.0] * 12


def test_updates_that_are_longer_are_those_of_the_float64_reference():
    *_, engine, times = matrix(lambda p, step: drawn(0), 20, verify_every=1)
    assert max(times) > 1.2
    assert engine.report.verified == 20
    assert engine.report.deviation < 1e-9


def test_slopes_are_taken_at_every_second_step_and_later_at_every_eighth():
    found = [step for step in range(1, 200) if slopes.due(step)]
    assert found == [*range(1, 65, 2), *range(65, 200, 8)]


# ---------------------------------------------------------------- what happens in between


def test_a_gradient_that_is_not_finite_between_two_slopes_changes_nothing():
    def broken(p, step):
        return torch.full_like(p, torch.nan) if step in (8, 9, 12) else drawn(0)

    *_, engine, times = matrix(broken, 23)
    *_, expected = matrix(lambda p, step: drawn(0), 20)
    assert engine.report.skipped == 3
    assert [time for step, time in enumerate(times, 1) if step not in (8, 9, 12)] == pytest.approx(expected)


def test_a_layer_without_a_gradient_waits_with_nothing_open():
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
    engine = attach(net, optimizer, Muon())
    train(net, optimizer, range(1))
    assert all(stack.slopes.open for stack in engine.stacks)
    optimizer.zero_grad()
    net.conv.weight.grad = torch.ones_like(net.conv.weight)
    optimizer.step()
    for stack in engine.stacks:
        assert not stack.slopes.open
        assert float(stack.slopes.opened.abs().sum()) == 0
        assert float(stack.slopes.means[:, 3].sum()) == sum(block.name == "conv.weight" for block in stack.blocks)


@pytest.mark.parametrize("stop", one_in(3, range(5, 13)))
@pytest.mark.parametrize("method", [Muon(), SOAP(start=10, period=4)], ids=["muon", "soap"])
def test_a_resumed_run_is_the_one_that_was_not_stopped(method, stop):
    def started():
        torch.manual_seed(1)
        net = Net()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        return net, optimizer, attach(net, optimizer, method)

    straight, optimizer, engine = started()
    train(straight, optimizer, range(18))
    if isinstance(method, Muon):
        assert max(float(stack.slopes.times.max()) for stack in engine.stacks) > 1
    first = started()
    train(*first[:2], range(stop))
    states = copy.deepcopy([part.state_dict() for part in first])
    again = started()
    for part, state in zip(again, states, strict=True):
        part.load_state_dict(state)
    train(*again[:2], range(stop, 18))
    assert all(map(torch.equal, straight.parameters(), again[0].parameters()))


def test_other_lengths_are_refused():
    net = Net()
    refused = pytest.raises(ConfigError, match=r"lengths='long'.*'measured', 'base'")
    with refused:
        attach(net, torch.optim.AdamW(net.parameters()), Muon(), lengths="long")
    with refused:
        SecondOrder(lengths="long")
