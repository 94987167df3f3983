"""K-FAC against dense float64 oracles: factors, inverses, and the step that comes of them."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_so import KFAC, Relative, attach

EXACT = pytest.mark.parametrize("exact", [False, True], ids=["factored", "exact"])


def net(*, act=nn.Tanh, bias=True, sizes=(3, 4, 4, 2)):
    layers = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, bias=bias, dtype=torch.float64), act()]
    return nn.Sequential(*layers[:-1])


def data(count=12, inputs=3, outputs=2, seed=1):
    torch.manual_seed(seed)
    return torch.randn(count, inputs, dtype=torch.float64), torch.randn(count, outputs, dtype=torch.float64)


def losses(model, x, y):
    """One a sample."""
    return (model(x) - y).square().flatten(1).sum(1)


def sgd(model, method, lr=1.0):
    return attach(model, torch.optim.SGD(model.parameters(), lr=lr), method)


def step(engine, loss):
    engine.optimizer.zero_grad()
    loss.backward()
    engine.optimizer.step()


def stats_of(engine, name):
    return next((s.stats, row) for s in engine.stacks for row, block in enumerate(s.blocks) if block.name == name)


def factors(engine, name):
    """A and G of a block, (Q, T, T) each; (Q, T) of a diagonal."""
    stats, row = stats_of(engine, name)
    found = [side.factors[0][row] / stats.weight[row] for side in stats.sides]
    return [F[..., None] if F.shape[-1] == 1 and F.ndim == 2 else F for F in found]


def product(engine, name):
    A, G = factors(engine, name)
    return torch.kron(G[0], A[0])


def gradient(layer, value):
    """Gradient of a scalar as the block's matrix: the bias is the last column."""
    found = torch.autograd.grad(value, list(layer.parameters()), retain_graph=True)
    parts = [found[0].flatten(1), *(g[:, None] for g in found[1:])]
    return torch.cat(parts, 1)


def dense(layer, values):
    """Mean of the outer products of the gradients of scalars."""
    J = torch.stack([gradient(layer, value).flatten() for value in values])
    return J.mT @ J / len(J)


def matrix(layer):
    return torch.cat([p.detach().flatten(1) if p.ndim > 1 else p.detach()[:, None] for p in layer.parameters()], 1)


def linears(model):
    return {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def rows(model, x, y):
    """Per layer, inputs with their one and gradients of one sample's loss in the output."""
    model, seen = copy.deepcopy(model), {}
    for name, layer in linears(model).items():
        layer.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, (args[0], out)))
    total = losses(model, x, y).sum()
    grads = torch.autograd.grad(total, [out for _, out in seen.values()])
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    return {name: (torch.cat([a, ones], 1).detach(), g) for (name, (a, _)), g in zip(seen.items(), grads)}


def tiled(F, cap):
    """What is left of a factor in the fewest tiles of at most `cap`; on a side of more than eight, its diagonal."""
    count = len(F) if len(F) > 8 * (cap or len(F)) else math.ceil(len(F) / (cap or len(F)))
    tile = torch.zeros(len(F), dtype=torch.long)
    for edge in range(1, count):
        tile[len(F) * edge // count :] += 1
    return F * (tile[:, None] == tile)


def columns(engine, outputs):
    """Accumulate one micro-batch an output column, so that output gradients have E g g' = I: the GGN of |f|^2 / 2.

    Loss terms are averaged over, each micro-batch is divided by their number C, and columns are averaged instead of
    summed: together a factor sqrt(C) / C.
    """
    engine.optimizer.zero_grad()
    count = outputs().shape[-1]
    for c in range(count):
        (outputs()[..., c].mean() / math.sqrt(count)).backward()


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def error(a, b):
    return float(((a - b).norm() / b.norm()).detach())


# ---------------------------------------------------------------- factors


@pytest.mark.parametrize("copies", [1, 3])
def test_copies_of_one_sample_give_the_dense_empirical_fisher_of_every_layer(copies):
    model, (x, y) = net(), data(1)
    expected = {name: dense(layer, losses(model, x, y)) for name, layer in linears(model).items()}
    engine = sgd(model, KFAC(period=1))
    step(engine, losses(model, x.expand(copies, -1), y).mean())
    assert len(expected) == 3
    for name, F in expected.items():
        close(product(engine, name), F)


def test_several_samples_give_the_factors_by_definition_and_not_the_dense_fisher():
    model, (x, y) = net(), data(5)
    expected = {name: dense(layer, losses(model, x, y)) for name, layer in linears(model).items()}
    found = rows(model, x, y)
    engine = sgd(model, KFAC(period=1))
    step(engine, losses(model, x, y).mean())
    for name, (a, g) in found.items():
        A, G = factors(engine, name)
        close(A[0], a.mT @ a / 5)
        close(G[0], g.mT @ g / 5)
        assert error(product(engine, name), expected[name]) > 1e-3


def test_factors_are_debiased_moving_averages():
    model = net()
    engine = sgd(model, KFAC(period=1), lr=1e-3)
    sums = {name: [0.0, 0.0] for name in linears(model)}
    for t in range(4):
        x, y = data(7 + t, seed=t)
        for name, (a, g) in rows(model, x, y).items():
            for side, z in enumerate((a, g)):
                sums[name][side] = 0.95 * sums[name][side] + 0.05 * z.mT @ z / len(z)
        step(engine, losses(model, x, y).mean())
        for name, sides in sums.items():
            for found, expected in zip(factors(engine, name), sides):
                close(found[0], expected / (1 - 0.95 ** (t + 1)))


@pytest.mark.parametrize("act", [nn.Identity, nn.Tanh])
def test_the_generalized_gauss_newton_matrix_is_exact_in_a_deep_linear_eachalone(act):
    model, (x, _) = net(act=act), data(6)
    f = model(x)
    expected = {name: 2 * dense(layer, f.flatten()) for name, layer in linears(model).items()}  # a sum over columns
    engine = sgd(model, KFAC(period=1), lr=0.0)
    columns(engine, lambda: model(x))
    engine.optimizer.step()
    for name, F in expected.items():
        linear = act is nn.Identity or name == "4.weight"  # The last layer is linear in any net.
        assert (error(product(engine, name), F) < 1e-10) if linear else (error(product(engine, name), F) > 1e-3)


def test_one_newton_step_reaches_the_least_squares_solution():
    model, (x, y) = net(sizes=(3, 2)), data(12)
    grads = torch.autograd.grad(losses(model, x, y).mean() / 2, list(model.parameters()))
    engine = sgd(model, KFAC(damping=1e-12, exact=True, clip=None, period=1))
    columns(engine, lambda: model(x))
    for p, g in zip(model.parameters(), grads):
        p.grad = g
    engine.optimizer.step()
    design = torch.cat([x, torch.ones(12, 1, dtype=x.dtype)], 1)
    close(matrix(model[0]), torch.linalg.lstsq(design, y).solution.mT, 1e-9)


# ---------------------------------------------------------------- inverses


@EXACT
@pytest.mark.parametrize("damping", [0.03, Relative(0.3)], ids=["absolute", "relative"])
@pytest.mark.parametrize("cap", [None, 2], ids=["whole", "tiles"])
def test_one_step_of_sgd_is_the_damped_inverse(cap, damping, exact):
    # With tiles of 2, sides of 3 and 4 have two of them, and sides of 20 and 21 are diagonal.
    model, (x, y) = net(sizes=(3, 4, 20, 2) if cap else (3, 4, 4, 2)), data()
    found, before = rows(model, x, y), {name: matrix(layer) for name, layer in linears(model).items()}
    grads = {name: gradient(layer, losses(model, x, y).mean()) for name, layer in linears(model).items()}
    step(sgd(model, KFAC(damping=damping, exact=exact, clip=None, period=1, cap=cap)), losses(model, x, y).mean())
    for name, layer in linears(model).items():
        A, G = (tiled(z.mT @ z / len(z), cap) for z in found[name])
        eye_a, eye_g = (torch.eye(len(F), dtype=F.dtype) for F in (A, G))
        a, g = (float(F.trace() / len(F)) for F in (A, G))
        lam = damping if isinstance(damping, float) else damping.times * a * g
        if exact:
            F = torch.kron(G, A) + lam * torch.eye(len(A) * len(G), dtype=A.dtype)
            U = torch.linalg.solve(F, grads[name].flatten()).view_as(grads[name])
        else:
            pi = math.sqrt(a / g)
            U = torch.linalg.solve(G + math.sqrt(lam) / pi * eye_g, grads[name])
            U = torch.linalg.solve(A + pi * math.sqrt(lam) * eye_a, U, left=False)
        close(before[name] - matrix(layer), U)


@EXACT
def test_scaling_one_factor_and_the_other_back_changes_nothing(exact):
    model, (x, y) = net(), data()
    method = KFAC(damping=0.1, exact=exact, clip=None, period=1)
    engine = sgd(model, method, lr=0.0)
    step(engine, losses(model, x, y).mean())
    stats, row = stats_of(engine, "2.weight")
    X = torch.randn(len(engine.stacks[1].blocks), 4, 5, dtype=torch.float64)
    directions = []
    for c in (1.0, 1e4):
        stats.sides[0].factors[0].mul_(c)
        stats.sides[1].factors[0].div_(c)
        unit = next(
            u for u in engine.parts.units.schedule.units if engine.stacks[u.stack].stats is stats and u.row == row
        )
        method.swap_in([(stats, unit)], method.solve([(stats, unit)]))
        directions.append(method.direction(stats, X, None))
    close(directions[1], directions[0])


@EXACT
def test_a_large_damping_gives_the_gradient(exact):
    model, (x, y) = net(), data()
    before = {name: matrix(layer) for name, layer in linears(model).items()}
    grads = {name: gradient(layer, losses(model, x, y).mean()) for name, layer in linears(model).items()}
    # Each side is damped by a square root of lambda.
    step(sgd(model, KFAC(damping=1e12, exact=exact, clip=None, period=1), lr=1e12), losses(model, x, y).mean())
    for name, layer in linears(model).items():
        close(before[name] - matrix(layer), grads[name], 1e-9 if exact else 1e-4)


@pytest.mark.parametrize("side", ["inputs", "pre-activations"])
def test_without_damping_the_update_does_not_depend_on_affine_coordinates(side):
    class Into(nn.Module):
        """Coordinates of the first layer's inputs, or of its outputs."""

        def __init__(self):
            super().__init__()
            self.layer, self.M = nn.Linear(3, 4, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
            self.shift, self.S = torch.zeros(3, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
            self.head = nn.Linear(4, 2, dtype=torch.float64)

        def forward(self, x):
            return self.head(torch.tanh(self.layer(x @ self.M.mT + self.shift) @ torch.linalg.inv(self.S).mT))

    plain, (x, y) = Into(), data(20)
    changed = copy.deepcopy(plain)
    with torch.no_grad():
        if side == "inputs":
            changed.M = torch.randn(3, 3, dtype=torch.float64) + 2 * torch.eye(3, dtype=torch.float64)
            changed.shift = torch.randn(3, dtype=torch.float64)
            changed.layer.weight.copy_(plain.layer.weight @ torch.linalg.inv(changed.M))
            changed.layer.bias.sub_(changed.layer.weight @ changed.shift)
        else:
            changed.S = torch.randn(4, 4, dtype=torch.float64) + 2 * torch.eye(4, dtype=torch.float64)
            changed.layer.weight.copy_(changed.S @ plain.layer.weight)
            changed.layer.bias.copy_(changed.S @ plain.layer.bias)
    start = plain(x).detach()
    close(changed(x).detach(), start, 1e-12)
    for model in (plain, changed):
        step(sgd(model, KFAC(damping=Relative(1e-12), exact=True, clip=None, period=1)), losses(model, x, y).mean())
    assert error(plain(x), start) > 1e-2
    close(changed(x).detach(), plain(x).detach(), 1e-8)


def test_the_clip_bounds_the_step_over_all_blocks_together():
    lr, bound, (x, y) = 0.01, 1e-4, data()
    model = net()
    free = copy.deepcopy(model)
    grads = {name: gradient(layer, losses(model, x, y).mean()) for name, layer in linears(model).items()}
    before = {name: matrix(layer) for name, layer in linears(model).items()}
    level = float(losses(model, x, y).mean().detach())
    for each, clip in ((model, bound), (free, None)):
        engine, loss = sgd(each, KFAC(clip=clip, period=1, fisher="sampled"), lr=lr), losses(each, x, y).mean()
        engine.before_backward(loss)
        step(engine, loss)
    bends, promises, ratios = 0.0, 0.0, []
    for name, layer in linears(model).items():
        u = (before[name] - matrix(linears(free)[name])) / lr
        ratios.append((before[name] - matrix(layer)) / (lr * u))
        bends += lr * float((u * grads[name]).sum())
        promises += lr * float(grads[name].square().sum())
    nu = ratios[0][0, 0]
    for ratio in ratios:
        close(ratio, nu.expand_as(ratio), 1e-9)
    assert float(nu) == pytest.approx(max((bound * level / bends) ** 0.5, 0.5 * promises / bends), rel=1e-9)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.cells, self.down = nn.Linear(3, 4), nn.GRU(4, 5), nn.Linear(5, 2)


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)


@pytest.mark.parametrize("kind", [Recurrent, Language])
def test_a_head_keeps_the_updates_of_a_base_that_is_bent(kind):
    model = kind()
    for base, covered in ((torch.optim.AdamW, False), (torch.optim.SGD, True)):
        engine = attach(model, base(model.parameters(), lr=0.1), KFAC())
        rows = {row.name: row for row in engine.plan.rows}
        assert rows["down.weight"].role == "head"
        assert rows["down.weight"].covered is covered
        assert rows["up.weight"].covered
        engine.detach()
