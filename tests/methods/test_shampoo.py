"""Shampoo against equations in float64 that are written another way, on tensors of every order."""

import math

import pytest
import torch
from torch import nn

from lightning_so import ConfigError, SecondOrder, Shampoo, Synchronous, attach
from tests.methods.test_kfac import close
from tests.support import noted

EVERY = {"period": 1, "schedule": Synchronous()}


class Tensors(nn.Module):
    """Parameters of several orders, whose gradients are given."""

    def __init__(self, *shapes):
        super().__init__()
        torch.manual_seed(0)
        self.tensors = nn.ParameterList(torch.randn(s, dtype=torch.float64) for s in shapes)


def gradients(shapes, step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def power(F, p, epsilon):
    """F^(-1/p) by eigenvalues of the damped factor."""
    values, vectors = torch.linalg.eigh(F + epsilon * F.diagonal().max() * torch.eye(len(F), dtype=F.dtype))
    return vectors @ torch.diag(values ** (-1 / p)) @ vectors.T


def unfold(X, i):
    return X.transpose(0, i).reshape(X.shape[i], -1)


def along(X, i, R):
    """Multiply dimension i by R."""
    return torch.tensordot(R, X, dims=([1], [i])).movedim(0, i)


class Reference:
    """Shampoo with SGD grafting and heavy-ball momentum, or along Adam's first moment, for one tensor."""

    def __init__(self, W, beta, epsilon, p, whiten=False, bent=False):
        self.W, self.beta, self.epsilon, self.whiten = W.clone(), beta, epsilon, whiten
        self.sides = [i for i, n in enumerate(W.shape) if n > 1]
        self.p = p or (max(2, len(self.sides)) if bent else 2 * len(self.sides))
        self.F = {i: torch.zeros(W.shape[i], W.shape[i], dtype=W.dtype) for i in self.sides}
        self.S = {i: torch.eye(W.shape[i], dtype=W.dtype) for i in self.sides}
        self.m, self.v, self.buf, self.t = torch.zeros_like(W), torch.zeros_like(W), torch.zeros_like(W), 0

    def fold(self, g):
        for i in self.sides:
            w = 1.0 if self.beta == 1 else 1 - self.beta
            seen = g
            if self.whiten:  # by the roots of the step before
                for j in self.sides:
                    seen = along(seen, j, self.S[j]) if j != i else seen
                seen = seen * g.norm() / seen.norm()
            self.F[i] = self.beta * self.F[i] + w * unfold(seen, i) @ unfold(seen, i).T
        self.S = {i: power(F, self.p, self.epsilon) for i, F in self.F.items()}

    def turned(self, X):
        Y = X
        for i in self.sides:
            Y = along(Y, i, self.S[i])
        return Y

    def sgd(self, g, lr, mu, wd):
        self.fold(g)
        P = self.turned(g)
        self.buf = mu * self.buf + P * g.norm() / P.norm() + wd * self.W
        self.W = self.W - lr * self.buf

    def adamw(self, g, lr, wd, b1=0.9, b2=0.999, eps=1e-8):
        self.fold(g)
        self.t += 1
        self.m, self.v = b1 * self.m + (1 - b1) * g, b2 * self.v + (1 - b2) * g * g
        u = lr * self.m / (1 - b1**self.t) / ((self.v / (1 - b2**self.t)).sqrt() + eps)
        P = self.turned(b1 * self.m + (1 - b1) * g)
        self.W = self.W * (1 - lr * wd) - u.norm() * P / P.norm()


SHAPES = [(4, 3), (5, 4, 3), (3, 2, 3, 2), (4, 1, 3), (6, 2)]


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 1.0},
        {"beta": 0.5, "power": 2},
        {"epsilon": 1e-2, "power": 1.3},
        {"whiten": True},
        {"whiten": True, "power": 2, "beta": 0.5},
    ],
    ids=str,
)
def test_twenty_steps_are_those_of_the_equations(base, options):
    model = Tensors(*SHAPES)
    method = Shampoo(**EVERY, **options)
    told = (method.beta, method.epsilon, method.power, method.whiten, base == "adamw")
    references = [Reference(p.detach(), *told) for p in model.tensors]
    if base == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    engine = attach(model, optimizer, method, verify_every=1, lengths="base")
    for step in range(20):
        for p, reference, g in zip(model.tensors, references, gradients(SHAPES, step)):
            p.grad = g.clone()
            reference.sgd(g, 0.05, 0.9, 0.01) if base == "sgd" else reference.adamw(g, 0.05, 0.1)
        optimizer.step()
    report = engine.report
    assert (report.preconditioned, report.bent) == ((5, 0) if base == "sgd" else (0, 5))
    assert report.failures == 0
    for p, reference in zip(model.tensors, references):
        close(p.detach(), reference.W, 1e-9)


def test_tiles_are_blocks_of_their_own_and_long_sides_diagonals():
    shape = (6, 20)  # with tiles of 2: three tiles, and a diagonal
    model, method = Tensors(shape), Shampoo(cap=2, **EVERY)
    g = gradients([shape], 0)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.tensors[0].detach().clone()
    attach(model, optimizer, method)
    model.tensors[0].grad = g.clone()
    optimizer.step()
    L, R = 0.05 * g @ g.T, 0.05 * g.T @ g
    tile = torch.arange(6) // 2
    blocks = [power(L[tile == t][:, tile == t], 4, 1e-6) for t in range(3)]
    P = torch.block_diag(*blocks) @ g @ torch.diag((R.diagonal() + 1e-6 * R.diagonal().max()) ** -0.25)
    close(before - model.tensors[0].detach(), P * g.norm() / P.norm(), 1e-9)


def test_factors_see_gradients_whitened_tile_by_tile_and_by_no_diagonal():
    shape = (6, 20)  # with tiles of 3: two tiles, and seven; with tiles of 2: three tiles, and a diagonal
    g, h = (gradients([shape], step)[0] for step in range(2))
    for cap, columns in ((3, 7), (2, 0)):
        model = Tensors(shape)
        engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.0), Shampoo(cap=cap, whiten=True, **EVERY))
        model.tensors[0].grad = g.clone()
        engine.optimizer.step()
        rows, cols = engine.stacks[0].stats.sides
        S_1 = torch.block_diag(*(root[0] for root in rows.roots))
        S_2 = torch.block_diag(*(root[0] for root in cols.roots)) if columns else torch.eye(20).double()
        assert len(cols.roots) == columns
        before = [F.clone() for side in (rows, cols) for F in side.factors]
        model.tensors[0].grad = h.clone()
        engine.optimizer.step()
        seen = [h @ S_2, S_1 @ h]
        A, B = (Y * h.norm() / Y.norm() for Y in seen)
        outer = [A[cut] @ A[cut].T for cut in rows.cuts]
        outer += [B[:, cut].T @ B[:, cut] for cut in cols.cuts] or [B.square().sum(0)]
        after = [F for side in (rows, cols) for F in side.factors]
        for F, old, new in zip(after, before, outer, strict=True):
            close(F[0], 0.95 * old[0] + 0.05 * new, 1e-12)


def test_merging_makes_a_matrix_of_a_kernel():
    model, g = Tensors((3, 2, 2, 2)), gradients([(3, 2, 2, 2)], 0)[0]
    flat = Tensors((3, 8))
    flat.tensors[0].data.copy_(model.tensors[0].view(3, 8))
    for m in (model, flat):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        engine = attach(m, optimizer, Shampoo(merge=True, **EVERY))
        m.tensors[0].grad = g.view(m.tensors[0].shape).clone()
        optimizer.step()
        assert engine.report.solves == 2
    close(model.tensors[0].detach().view(3, 8), flat.tensors[0].detach())


def test_a_constant_gradient_of_rank_one_keeps_its_direction():
    # With a sum of n equal u v', |u| = |v| = 1, the ungrafted step is n^(-1/2) u v'; grafted it is u v' itself.
    u, v = torch.tensor([0.6, 0.8]).double(), torch.tensor([0.8, -0.6]).double()
    model = Tensors((2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine = attach(model, optimizer, Shampoo(beta=1.0, epsilon=1e-12, **EVERY))
    for n in range(1, 5):
        before = model.tensors[0].detach().clone()
        model.tensors[0].grad = torch.outer(u, v)
        optimizer.step()
        close(before - model.tensors[0].detach(), torch.outer(u, v), 1e-6)
        side = engine.stacks[0].stats.sides[0]
        close(side.roots[0][0] @ u, n**-0.25 * u, 1e-6)


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_a_factor_that_is_not_finite_is_counted_and_the_last_root_stays(cls):
    model = Tensors((4, 3))
    engine = attach(model, cls(model.parameters(), lr=1e-2), Shampoo(**EVERY))
    for step in range(7):
        if step == 2:
            engine.stacks[0].stats.sides[0].factors[0][0, 1, 1] = math.nan
            kept = engine.stacks[0].stats.sides[0].roots[0].clone()
        model.tensors[0].grad = gradients([(4, 3)], step)[0]
        engine.optimizer.step()
        assert bool(model.tensors[0].isfinite().all())
    assert engine.report.failures == 4  # three before it is cold, and one after
    assert engine.report.cooled == 1
    assert torch.equal(engine.stacks[0].stats.sides[0].roots[0], kept)


@pytest.mark.parametrize("cls", [torch.optim.RMSprop, torch.optim.Adagrad])
def test_a_base_without_a_first_moment_is_refused_by_name(cls):
    model = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match=f"Shampoo on {cls.__name__}.*use SGD, Adam or AdamW") as said:
        attach(model, cls(model.parameters()), Shampoo())
    noted.refused(said, method="Shampoo", base=cls.__name__)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("beta", 1.1), ("epsilon", 0), ("power", 0), ("period", 0), ("cap", 1), ("schedule", "burst")],
)
def test_a_bad_argument_is_refused_by_name(argument, value):
    with pytest.raises(ConfigError, match=rf"Shampoo\({argument}="):
        Shampoo(**{argument: value})


def test_whitened_factors_with_too_small_a_power_are_refused():
    with pytest.raises(ConfigError, match=r"Shampoo\(power=1.5, whiten=True\).*power=2 or more"):
        Shampoo(power=1.5, whiten=True)


def test_the_plan_says_what_happens():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 300))
    engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Shampoo())
    text = str(engine.plan)
    assert "precondition by roots 1/8; tiles 1x4 and 1x3 and 1x3 and 1x3" in text
    assert "precondition by roots 1/4; tiles 2x150 and 1x4" in text
    assert SecondOrder(Shampoo()).method.beta == 0.95
