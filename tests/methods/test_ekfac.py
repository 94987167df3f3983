"""EKFAC against dense float64 oracles: second moments in the bases, the step they give, and moments that move."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_so import EKFAC, KFAC, ConfigError, Relative, attach
from lightning_so.core.checkpoint import checkpoint
from lightning_so.core.solves.basis import rotating
from lightning_so.linalg.damping import split, strength
from tests.core.test_fisher import gauss_newton, half
from tests.methods.test_kfac import (
    close,
    data,
    dense,
    error,
    factors,
    gradient,
    linears,
    losses,
    net,
    product,
    stats_of,
)
from tests.support.daily import daily, one_in

DOUBLE = {"dtype": torch.float64}
#: By name: the layer and its input.
LAYERS = {
    "linear": (lambda: nn.Linear(3, 4, **DOUBLE), lambda: torch.randn(5, 3, **DOUBLE)),
    "plain": (lambda: nn.Linear(3, 4, bias=False, **DOUBLE), lambda: torch.randn(5, 3, **DOUBLE)),
    "sequence": (lambda: nn.Linear(3, 4, **DOUBLE), lambda: torch.randn(5, 6, 3, **DOUBLE)),
    "conv": (lambda: nn.Conv2d(2, 3, 2, **DOUBLE), lambda: torch.randn(5, 2, 4, 4, **DOUBLE)),
    "grouped": (lambda: nn.Conv2d(4, 4, 3, groups=2, **DOUBLE), lambda: torch.randn(5, 4, 4, 4, **DOUBLE)),
    "transposed": (lambda: nn.ConvTranspose1d(2, 3, 3, **DOUBLE), lambda: torch.randn(5, 2, 4, **DOUBLE)),
    "embedding": (lambda: nn.Embedding(7, 4, **DOUBLE), lambda: torch.randint(0, 7, (5, 6))),
    "padded": (lambda: nn.Embedding(7, 4, padding_idx=2, **DOUBLE), lambda: torch.randint(0, 7, (5, 6))),
    "layernorm": (lambda: nn.LayerNorm(4, **DOUBLE), lambda: torch.randn(5, 3, 4, **DOUBLE)),
}


def sgd(model, method, lr=0.0, **options):
    return attach(model, torch.optim.SGD(model.parameters(), lr=lr), method, **options)


def stay(engine, loss, count):
    """Steps at rate 0: statistics and bases move, weights do not."""
    for _ in range(count):
        engine.optimizer.zero_grad()
        value = loss()
        engine.before_backward(value)
        value.backward()
        engine.optimizer.step()


def in_bases(stats, row, W):
    """Q_L' W Q_R group by group, from the dense bases of both sides."""
    sides = []
    for basis in stats.bases if stats.transposed else stats.bases[::-1]:
        eye = torch.eye(basis.shape.length, **DOUBLE).repeat(basis.shape.groups, 1, 1)
        for Q, cut in zip(basis.tensors, basis.shape.cuts):
            eye[:, cut, cut] = Q[row]
        sides.append(eye)
    return sides[0].mT @ W.view(len(sides[0]), -1, W.shape[-1]) @ sides[1]


def seen(engine, name, loss):
    """What one pass adds to s, over its loss terms."""
    stay(engine, loss, 4)
    engine.optimizer.zero_grad()
    value = loss()
    engine.before_backward(value)
    value.backward()
    stats, row = stats_of(engine, name)
    assert float(stats.moments.terms[row]) > 0
    return stats.moments.window[row] / stats.moments.terms[row], stats, row


@pytest.mark.parametrize("cap", [None, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_s_is_the_second_moment_of_single_samples_gradients_in_the_bases(name, cap):
    torch.manual_seed(0)
    make, inputs = LAYERS[name]
    model, x = nn.Sequential(make(), nn.Tanh()), inputs()
    y = torch.randn_like(model(x))

    def each():
        return (model(x) - y).square().flatten(1).sum(1)

    s, stats, row = seen(
        sgd(model, EKFAC(fisher="empirical", period=1, cap=cap, sharing="reduce")), "0.weight", lambda: each().mean()
    )
    biased = name not in ("transposed",)
    total = 0.0
    for value in each():
        found = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        parts = [found[0].reshape(s.shape[0] * s.shape[1], -1), *(g[:, None] for g in found[1:] if biased)]
        total = total + in_bases(stats, row, torch.cat(parts, 1)).square()
    close(s, total / len(x))


def test_chunks_of_samples_add_up(monkeypatch):
    test_s_is_the_second_moment_of_single_samples_gradients_in_the_bases("conv", None)
    monkeypatch.setattr("lightning_so.layers.squares.ROOM", 50)
    test_s_is_the_second_moment_of_single_samples_gradients_in_the_bases("conv", None)


@pytest.mark.parametrize("name", ["linear", "conv", "embedding"])
def test_samples_that_are_drawn_stand_for_all(name):
    torch.manual_seed(0)
    make, inputs = LAYERS[name]
    model, x, found = nn.Sequential(make(), nn.Tanh()), inputs(), []
    x = x[:1].expand(6, *x.shape[1:])
    for rows in (2, 10**6):
        engine = sgd(copy.deepcopy(model), EKFAC(fisher="empirical", period=1, rows=rows, sharing="reduce"))
        s, stats, row = seen(engine, "0.weight", lambda e=engine: e.host.model(x).square().flatten(1).sum(1).mean())
        if name == "embedding":  # Positions are drawn for its factors, so that its bases are others.
            found.append([s.sum()])
        else:
            found.append([s, *(side.factors[0][row] for side in stats.sides)])
    for few, every in zip(*found, strict=True):
        assert float(every.sum()) > 0
        close(few, every)


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
def test_second_moments_of_micro_batches_are_those_of_the_batch(fisher):
    model, (x, y), found = net(), data(6), []
    for parts in (1, 2):
        engine = sgd(copy.deepcopy(model), EKFAC(period=1, fisher=fisher))
        for _ in range(7):
            engine.optimizer.zero_grad()
            for inputs, targets in zip(x.chunk(parts), y.chunk(parts), strict=True):
                loss = losses(engine.host.model, inputs, targets).mean() / parts
                engine.before_backward(loss)
                loss.backward()
            engine.optimizer.step()
        stats, row = stats_of(engine, "2.weight")
        found.append(stats.moments.mean[row])
    assert float(found[0].sum()) > 0
    close(*found)


def test_a_skipped_step_leaves_nothing_in_the_second_moments():
    model, (x, y), found = net(), data(6), []
    for poison in (1.0, math.nan):
        engine = sgd(copy.deepcopy(model), EKFAC(fisher="empirical", period=1))
        stay(engine, lambda e=engine: losses(e.host.model, x, y).mean(), 6)
        if poison != 1:
            stay(engine, lambda e=engine: math.nan * losses(e.host.model, x, y).mean(), 1)
            assert engine.report.skipped == 1
        stay(engine, lambda e=engine: losses(e.host.model, x, y).mean(), 1)
        stats, row = stats_of(engine, "2.weight")
        found.append(stats.moments.mean[row])
    assert float(found[0].sum()) > 0
    close(*found)


def kronecker(stats, row):
    """The basis of a plain layer's vec, and K-FAC's eigenvalues in it."""
    (a, g), (of_a, of_g) = stats.bases, stats.values
    return torch.kron(g.tensors[0][row, 0], a.tensors[0][row, 0]), torch.outer(of_g[row, 0], of_a[row, 0]).flatten()


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
def test_it_is_the_diagonal_of_the_fisher_matrix_and_nearer_to_it_than_kfac(fisher):
    model, (x, y) = net(), data(6)
    for name, layer in linears(model).items():
        engine = sgd(model, EKFAC(period=1, fisher=fisher))
        s, stats, row = seen(engine, name, lambda: losses(model, x, y).mean())
        expected = dense(layer, losses(model, x, y))
        if fisher == "exact":
            expected = gauss_newton(model, layer, x, None, half)
        Q, product_of_values = kronecker(stats, row)
        close(Q.mT @ Q, torch.eye(len(Q), **DOUBLE))
        close((Q.mT @ expected @ Q).diagonal(), s.flatten())
        nearer, farther = ((expected - Q @ torch.diag(v) @ Q.mT).norm() for v in (s.flatten(), product_of_values))
        kfac = (expected - product(engine, name)).norm()
        assert nearer <= farther * (1 + 1e-9)
        if name != "4.weight":
            assert nearer < 0.98 * kfac
        engine.detach()


@pytest.mark.parametrize("rule", [0.01, Relative(0.5)], ids=["absolute", "relative"])
def test_the_step_is_the_dense_solution(rule):
    model, (x, y) = net(), data(6)
    engine = sgd(model, EKFAC(fisher="empirical", period=1, clip=None, damping=rule))
    stay(engine, lambda: losses(model, x, y).mean(), 7)
    twin = copy.deepcopy(model)
    grads = {name: gradient(layer, losses(twin, x, y).mean()) for name, layer in linears(twin).items()}
    stay(engine, lambda: losses(model, x, y).mean(), 1)
    for name, layer in linears(model).items():
        stats, row = stats_of(engine, name)
        Q, eigenvalues = kronecker(stats, row)
        left = 1 - stats.moments.weight[row]
        assert 0.1 < float(left) < 0.9
        s = stats.moments.mean[row].flatten() + left * eigenvalues
        A, G = factors(engine, name)
        means = [A[0].trace() / len(A[0]), G[0].trace() / len(G[0])]
        of_a, of_g = split(strength(rule, means), means)
        eyes = [torch.eye(len(F_), **DOUBLE) for F_ in (A[0], G[0])]
        damping = torch.kron(G[0] + of_g * eyes[1], A[0] + of_a * eyes[0]) - torch.kron(G[0], A[0])
        damping = (Q.mT @ damping @ Q).diagonal()
        found = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1).flatten()
        F_ = Q @ torch.diag(s + damping) @ Q.mT
        close(found, torch.linalg.solve(F_, grads[name].flatten()), 1e-8)


@pytest.mark.parametrize("rule", [0.01, Relative(0.5)], ids=["absolute", "relative"])
def test_where_it_has_seen_nothing_of_its_own_the_step_is_kfacs(rule):
    model, (x, y) = net(), data(6)
    engine = sgd(model, EKFAC(fisher="empirical", period=1, clip=None, damping=rule))
    stay(engine, lambda: losses(model, x, y).mean(), 4)
    for name in linears(model):
        stats, row = stats_of(engine, name)
        stats.moments.mean[row], stats.moments.weight[row] = 0, 0
        for F_, basis, values in zip(factors(engine, name), stats.bases, stats.values, strict=True):
            values[row], basis.tensors[0][row] = torch.linalg.eigh(F_)  # without the ridge
        A, G = (factor[0] for factor in factors(engine, name))
        of_a, of_g = split(strength(rule, means := [A.trace() / len(A), G.trace() / len(G)]), means)
        X = torch.randn(len(G), len(A), **DOUBLE)
        expected = torch.linalg.inv(G + of_g * torch.eye(len(G))) @ X @ torch.linalg.inv(A + of_a * torch.eye(len(A)))
        close(EKFAC(fisher="empirical").direction(stats, X[None], [row])[0], expected, 1e-7)


def test_the_basis_of_a_tile_that_is_rounding_is_no_accident():
    engine = sgd(nn.Linear(4, 4, bias=False, **DOUBLE), EKFAC(fisher="empirical", cap=2))
    stats, row = stats_of(engine, "weight")
    method = engine.stacks[0].method
    for solve in (method.solve_afresh, lambda *asked: method.solve([asked])):
        for seed in range(3):
            noise = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed), **DOUBLE)
            stats.sides[0].factors[0][row] = torch.eye(2, **DOUBLE)
            stats.sides[0].factors[1][row] = 1e-24 * noise @ noise.mT
            unit = next(u for u in engine.parts.units.schedule.units if (u.side, u.tile) == (1, 1))
            close(solve(stats, unit).value.flatten()[:4].view(2, 2), torch.eye(2, **DOUBLE), 1e-2)


@pytest.mark.parametrize("name", LAYERS)
def test_values_are_the_factors_diagonals_in_the_bases(name):
    torch.manual_seed(0)
    make, inputs = LAYERS[name]
    model, x = nn.Sequential(make(), nn.Tanh()), inputs()
    engine = sgd(model, EKFAC(fisher="empirical", period=1))
    engine.parts.budget.spreads.clear()  # all units at every step
    stay(engine, lambda: model(x).square().flatten(1).sum(1).mean(), 3)
    stats, row = stats_of(engine, "0.weight")
    for side, basis, values in zip(stats.sides, stats.bases, stats.values, strict=True):
        F_, Q = side.factors[0][row] / stats.weight[row], basis.dense(row)
        close(values[row], (Q.mT @ F_ @ Q).diagonal(dim1=1, dim2=2) if side.shape.cuts else F_)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_factors_of_nothing_have_no_solution(value):
    engine = sgd(nn.Embedding(7, 4, **DOUBLE), EKFAC(fisher="empirical"))
    stack = engine.stacks[0]
    for side in stack.stats.sides:
        side.factors[0].fill_(value)
    assert len(engine.parts.units.schedule.units) == 2
    for unit in engine.parts.units.schedule.units:
        assert not stack.method.solve([(stack.stats, unit)]).good.any()
        assert not stack.method.solve_afresh(stack.stats, unit).ok


@pytest.mark.parametrize("side", [0, 1])
def test_second_moments_move_with_eigenvalues_that_change_places(side):
    model, (x, y) = net(), data(6)
    engine = sgd(model, EKFAC(fisher="empirical", period=1))
    stay(engine, lambda: losses(model, x, y).mean(), 7)
    stats, row = stats_of(engine, "2.weight")
    index, method = next((i, stack.method) for i, stack in enumerate(engine.stacks) if stack.stats is stats)
    unit = next(u for u in engine.parts.units.schedule.units if (u.stack, u.row, u.side) == (index, row, side))

    def fisher():
        return kronecker(stats, row)[0] @ stats.moments.mean[row].flatten().diag() @ kronecker(stats, row)[0].mT

    before, Q = fisher(), stats.oriented(stats.bases)[side].tensors[0][row]
    stats.oriented(stats.sides)[side].factors[0][row] = Q * torch.arange(1, Q.shape[-1] + 1) @ Q.mT
    solved = method.solve([(stats, unit)])
    assert solved.order.tolist() == [[*range(Q.shape[-1])][::-1]]
    method.swap_in([(stats, unit)], solved)
    close(fisher(), before, 2e-2)


def test_the_clip_bounds_the_part_of_the_loss_that_a_step_bends():
    start, (x, y), found = net(), data(6), []
    for clip in (None, 1e-6):
        model = copy.deepcopy(start)
        engine = sgd(model, EKFAC(fisher="sampled", period=1, clip=clip))
        stay(engine, lambda m=model: losses(m, x, y).mean(), 7)
        engine.optimizer.param_groups[0]["lr"] = 0.1
        plain = torch.autograd.grad(losses(model, x, y).mean(), list(model.parameters()))
        level = float(losses(model, x, y).mean().detach())
        stay(engine, lambda m=model: losses(m, x, y).mean(), 1)
        found.append([p.grad for p in model.parameters()])
    rate = 0.1
    bends = rate * sum(float((a * b).sum()) for a, b in zip(plain, found[0], strict=True))
    promises = rate * sum(float(a.square().sum()) for a in plain)
    nu = max((1e-6 * level / bends) ** 0.5, 0.5 * promises / bends)
    assert nu < 0.9
    for full, clipped in zip(*found, strict=True):
        close(clipped, nu * full)


def test_it_starts_as_kfac_and_forgets_it():
    model, (x, y) = net(), data(6)
    engine = sgd(model, EKFAC(fisher="empirical", period=1))
    stats, row = stats_of(engine, "2.weight")
    while not stats.solved[row].all():
        stay(engine, lambda: losses(model, x, y).mean(), 1)
    ones = torch.ones(1, 1, 4, 5, **DOUBLE)
    close(stats.moments.estimate(ones, [row]), ones)  # rows were seen in no basis so far
    stay(engine, lambda: losses(model, x, y).mean(), 58)
    assert float(stats.moments.weight[row]) == pytest.approx(1 - 0.95**58, rel=1e-6)
    close(stats.moments.estimate(ones, [row]), stats.moments.mean[row : row + 1] + 0.95**58, 1e-6)


@pytest.mark.slow
def test_fresh_second_moments_follow_a_change_that_old_bases_do_not():
    model, (x, y) = net(), data(6)
    engine = sgd(model, EKFAC(fisher="empirical", period=64))
    stay(engine, lambda: losses(model, x, y).mean(), 200)
    stats, row = stats_of(engine, "2.weight")
    basis, old = stats.bases[0].tensors[0][row].clone(), stats.moments.mean[row].clone()
    engine.parts.units.schedule.next = engine.parts.units.schedule.tried = [10**9] * len(
        engine.parts.units.schedule.units
    )  # no refresh any more
    stay(engine, lambda: 10 * losses(model, x, y).mean(), 100)
    assert torch.equal(basis, stats.bases[0].tensors[0][row])
    assert float(stats.moments.mean[row].sum() / old.sum()) == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("name", ["linear", "conv", "grouped", "transposed", "embedding", "layernorm"])
@pytest.mark.parametrize(
    "cls", one_in(3, [torch.optim.AdamW, torch.optim.NAdam, torch.optim.RMSprop, torch.optim.Adagrad])
)
def test_the_base_runs_in_the_bases_whatever_it_is(name, cls):
    torch.manual_seed(0)
    make, inputs = LAYERS[name]
    model, x = nn.Sequential(make(), nn.Tanh()), inputs()
    engine = attach(
        model, cls(model.parameters(), lr=1e-2), EKFAC(fisher="empirical", start=3, period=2), verify_every=1
    )
    y, values = torch.randn_like(model(x)), []
    for _ in range(25):
        engine.optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        engine.optimizer.step()
        values.append(float(loss.detach()))
    assert engine.report.rotated == 1
    assert engine.report.deviation < 1e-9
    assert values[-1] < values[0]


def test_it_bends_along_the_polar_factor_and_rotates_from_its_start_on():
    model, (x, y) = net(), data(6)
    engine = attach(model, torch.optim.AdamW(model.parameters()), EKFAC(fisher="empirical", start=5, period=1))
    engine.parts.budget.spreads.clear()  # all units at every step
    seen = []
    for _ in range(7):
        stay(engine, lambda: losses(model, x, y).mean(), 1)
        seen.append((engine.report.bent, engine.report.rotated))
    assert seen == [(3, 0)] * 4 + [(2, 1), (1, 2), (0, 3)]  # blocks enter one after the other
    X = torch.randn(1, 4, 5, **DOUBLE)
    stack = next(stack for stack in engine.stacks if stack.shape == (4, 5))
    sizes = torch.linalg.svdvals(stack.method.direction(stack.stats, 100 * X, None))
    assert ((sizes > 0.6) & (sizes < 1.3)).all()


def test_the_unit_of_the_loss_matters_where_damping_has_it():
    model = net()
    engines = [
        attach(model, cls(model.parameters(), lr=0.1), EKFAC(fisher="empirical"))
        for cls in (torch.optim.SGD, torch.optim.AdamW)
    ]
    found = [
        method.needs_loss_unit(engine.host.base)
        for engine in engines
        for method in (EKFAC(damping=0.1), EKFAC(), EKFAC(damping=Relative()))
    ]
    assert found == [True, False, False, False, False, False]


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
# Late and seldom, a step watches some layers alone.
@pytest.mark.parametrize(("at", "period"), daily([(9, 4), (203, 16)], (9, 4)))
def test_going_on_from_a_state_equals_not_having_stopped(kind, at, period):
    start, (x, y), ends = net(), data(6), []
    for stop in (False, True):
        model = copy.deepcopy(start)
        engine = attach(model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9), kind(period=period))
        stay(engine, lambda m=model: losses(m, x, y).mean(), at)
        if stop:
            state, optimizer = engine.state_dict(), copy.deepcopy(engine.optimizer.state_dict())
            engine.detach()
            engine = attach(model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9), kind(period=period))
            engine.optimizer.load_state_dict(optimizer)
            engine.load_state_dict(state)
        stay(engine, lambda m=model: losses(m, x, y).mean(), 20)
        ends.append([p.detach() for p in model.parameters()])
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


def test_found_again_from_factors_it_starts_as_kfac():
    model, (x, y) = net(), data(6)
    engine = sgd(model, EKFAC(fisher="empirical", period=1))
    stay(engine, lambda: losses(model, x, y).mean(), 100)
    again = sgd(copy.deepcopy(model), EKFAC(fisher="empirical", period=1))
    checkpoint.read(again.parts, checkpoint.write(engine.parts, "compact"))
    stats, row = stats_of(again, "2.weight")
    assert float(stats.moments.weight[row]) == 0
    for side, basis in zip(stats.sides, stats.bases, strict=True):
        D = basis.dense(row)[0].mT @ side.factors[0][row, 0] @ basis.dense(row)[0]
        assert float((D - D.diag().diag()).abs().max()) < 1e-2 * float(D.diag().mean())  # the ridge's size
    stay(again, lambda: losses(again.host.model, x, y).mean(), 1)
    assert again.report.preconditioned == 3
    assert float(stats.moments.weight[row]) == pytest.approx(0.05)


def test_momentum_of_preconditioned_gradients_stays_in_plain_coordinates():
    model, (x, y) = net(), data(6)
    engine = attach(
        model, torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9), EKFAC(fisher="empirical", period=1)
    )
    expected = {p: torch.zeros_like(p) for p in model.parameters()}
    for _ in range(12):
        stay(engine, lambda: losses(model, x, y).mean(), 1)
        for p, m in expected.items():
            m.mul_(0.9).add_(p.grad)
            close(engine.optimizer.state[p]["momentum_buffer"], m)
    assert engine.report.preconditioned == 3
    engine.detach()
    for p, m in expected.items():
        close(engine.optimizer.state[p]["momentum_buffer"], m)


def plain_moment(engine, block, stack, row):
    m = torch.cat([engine.optimizer.state[p]["exp_avg"].reshape(block.rows, -1) for p in block.params], 1)
    return stack.method.turn(stack.stats, m[None], [row], leave=True)[0]


@pytest.mark.parametrize("name", ["linear", "grouped", "layernorm"])
def test_first_moments_are_carried_with_the_bias_and_by_group(name):
    torch.manual_seed(0)
    make, inputs = LAYERS[name]
    model, x = nn.Sequential(make(), nn.Tanh()), inputs()
    engine = attach(model, torch.optim.AdamW(model.parameters()), EKFAC(fisher="empirical", start=3, period=1))
    y = torch.randn_like(model(x))
    for _ in range(12):
        engine.optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        engine.optimizer.step()
    ((stack, row, block),) = rotating(engine.parts.roster)
    for _ in range(3):
        before, basis = plain_moment(engine, block, stack, row), stack.stats.bases[1].tensors[0].clone()
        engine.optimizer.zero_grad()
        (0 * model(x)).sum().backward()
        engine.optimizer.step()
        assert error(stack.stats.bases[1].tensors[0], basis) > 1e-6
        close(plain_moment(engine, block, stack, row), 0.9 * before)


def test_leaving_puts_the_moments_of_weight_and_bias_back():
    model, (x, y) = net(), data(6)
    engine = attach(model, torch.optim.AdamW(model.parameters()), EKFAC(fisher="empirical", start=3, period=1))
    for _ in range(12):
        engine.optimizer.zero_grad()
        losses(model, x, y).mean().backward()
        engine.optimizer.step()

    def moment(block, key):
        return torch.cat([engine.optimizer.state[p][key].reshape(block.rows, -1) for p in block.params], 1)

    expected, least = {}, engine.host.base.least_variance(engine.optimizer.param_groups[0])
    for stack, row, block in rotating(engine.parts.roster):
        m, (L, R) = plain_moment(engine, block, stack, row), stack.stats.oriented(stack.stats.bases)
        v = L.dense(row)[0].square() @ moment(block, "exp_avg_sq") @ R.dense(row)[0].square().mT
        expected[block] = m, torch.maximum(v, least * m.square())
    assert len(expected) == 3
    engine.detach()
    for block, (m, v) in expected.items():
        close(moment(block, "exp_avg"), m)
        close(moment(block, "exp_avg_sq"), v)


def test_groups_are_not_bent():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    engine = attach(model, torch.optim.AdamW(model.parameters()), EKFAC(fisher="empirical"))
    assert engine.plan.rows[0].verdict.startswith("hidden: base until step 50, then rotate with its bias; 2 groups, ")


def test_the_plan_says_what_happens_and_what_cannot():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.RMSNorm(4), nn.Linear(4, 7))
    engine = attach(model, torch.optim.AdamW(model.parameters()), EKFAC(fisher="empirical"))
    found = {row.name: row.verdict for row in engine.plan.rows}
    assert found["0.weight"].startswith("embedding: base until step 50, then rotate; inputs diagonal, outputs 1x4")
    assert found["1.weight"].startswith(
        "hidden: bend until step 50, then rotate with its bias; inputs 1x5, outputs 1x4"
    )
    assert found["2.weight"] == "base: neither side has a basis: EKFAC would be the base itself"
    assert found["3.weight"].startswith("head: base until step 50, then rotate with its bias")
    engine.detach()
    engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), EKFAC(fisher="empirical"))
    assert {row.name: row.verdict for row in engine.plan.rows}["1.weight"].startswith("hidden: precondition with its")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"start": -1}, "start"), ({"period": 0}, "period"), ({"damping": 0.0}, "damping"), ({"clip": -1.0}, "clip"),
     ({"damping": Relative(-1.0)}, "damping"),
     ({"fisher": "true"}, "fisher"), ({"sharing": "sum"}, "sharing"), ({"rows": 0}, "rows"), ({"cap": 1}, "cap")],
)  # fmt: skip
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ConfigError, match=rf"EKFAC\({name}="):
        EKFAC(**arguments)


def test_it_reaches_a_lower_loss_than_sgd_on_an_ill_conditioned_regression():
    torch.manual_seed(0)
    x = torch.randn(256, 6, **DOUBLE) * torch.logspace(0, -2, 6, **DOUBLE)
    y, ends = x @ torch.randn(6, 2, **DOUBLE) * 10, []
    for method in (None, EKFAC(period=4, fisher="exact", damping=1e-9, clip=None)):
        model = nn.Linear(6, 2, **DOUBLE)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if method is not None:
            engine = attach(model, optimizer, method)
        for _ in range(100):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            if method is not None:
                engine.before_backward(loss)
            loss.backward()
            optimizer.step()
        ends.append(float(loss.detach()))
    assert ends[1] < 0.1 * ends[0]
