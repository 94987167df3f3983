"""Nyström's approximation against dense matrices, and the method that divides steps by it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_so import ConfigError, Nystrom, attach
from lightning_so.linalg.nystrom import nystrom
from lightning_so.linalg.vectors import Piece, Space

N = 40


def space(dtype=torch.float64):
    return Space((Piece("a", 0, 30, 30), Piece("b", 0, N - 30, N - 30)), dtype=dtype)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(*eigenvalues):
    """A dense matrix with these eigenvalues; the others are zero."""
    Q = torch.linalg.qr(normal(0, N, N)).Q[:, : len(eigenvalues)]
    return Q * torch.tensor(eigenvalues, dtype=torch.float64) @ Q.mT


def dense(found):
    return found.rows.mT * found.values @ found.rows


SIX = (9.0, 5.0, 4.0, 2.0, 1.0, 0.5)


@pytest.mark.parametrize("rank", [6, 10])
def test_positive_matrices_of_that_rank_are_had_exactly(rank):
    A, Omega = symmetric(*SIX), normal(1, rank, N)
    found = nystrom(Omega @ A, Omega, space())
    assert found.ok
    torch.testing.assert_close(dense(found), A, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.values[:6], torch.tensor(SIX, dtype=torch.float64), rtol=1e-11, atol=0)
    kept = torch.diag((torch.arange(rank) < 6).double())
    torch.testing.assert_close(found.rows @ found.rows.mT, kept, rtol=0, atol=1e-11)
    assert found.least == pytest.approx(0.5, rel=1e-11)


def test_the_shift_is_taken_away_again():
    """It is twice the eigenvalue of -1e-3 that noise has made, and moves no other."""
    Omega = torch.eye(10, N, dtype=torch.float64)
    Y = Omega * torch.tensor([*SIX, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)[:, None]
    Y[8, 8], Y[8, 9], Y[9, 8] = -1e-3, 1e-3, -1e-3
    found = nystrom(Y, Omega, space())
    assert found.ok
    torch.testing.assert_close(found.values[:6], torch.tensor(SIX, dtype=torch.float64), rtol=0, atol=1e-9)


def test_of_other_matrices_it_is_the_one_that_they_are_above():
    A, Omega = symmetric(*SIX), normal(1, 4, N)
    found = nystrom(Omega @ A, Omega, space())
    assert float(torch.linalg.eigvalsh(A - dense(found))[0]) > -1e-11
    expected = A @ Omega.mT @ torch.linalg.inv(Omega @ A @ Omega.mT) @ Omega @ A
    torch.testing.assert_close(dense(found), expected, rtol=0, atol=1e-11)


def test_the_damped_inverse_is_that_of_the_dense_matrix():
    A, Omega, v = symmetric(*SIX), normal(1, 10, N), normal(2, N)
    found = nystrom(Omega @ A, Omega, space())
    for rho in (1e-2, 3.0):
        inverse = found.inverse(v, rho, space())
        torch.testing.assert_close(
            inverse, torch.linalg.solve(A + rho * torch.eye(N).double(), v), rtol=1e-9, atol=1e-9
        )


def test_preconditioned_by_it_a_sketched_matrix_is_a_multiple_of_one():
    A, Omega, rho = symmetric(*SIX), normal(1, 6, N), 0.1
    found = nystrom(Omega @ A, Omega, space())
    eye = torch.eye(N, dtype=torch.float64)
    P = torch.stack([found.precondition(e, rho, space()) for e in eye])
    expected = torch.full((N,), rho, dtype=torch.float64)
    expected[-6:] = 0.5 + rho
    torch.testing.assert_close(torch.linalg.eigvals(P @ (A + rho * eye)).real.sort().values, expected)


@pytest.mark.parametrize(("dtype", "noise"), [(torch.float64, 0.0), (torch.float64, 1e-5), (torch.float32, 1e-2)])
def test_negative_eigenvalues_are_told_from_noise(dtype, noise):
    Omega = normal(1, 10, N)
    for seed in range(20):
        errors = noise * normal(seed + 3, 10, N)
        positive, negative = (symmetric(*SIX, last) for last in (0.0, -2.0))
        found = nystrom((Omega @ positive + errors).to(dtype), Omega.to(dtype), space(dtype))
        assert found.ok
        assert float(found.values[0]) == pytest.approx(9.0, rel=1e-6 + 10 * noise)
        found = nystrom((Omega @ negative + errors).to(dtype), Omega.to(dtype), space(dtype))
        assert found.reason == "indefinite"
        assert not found.ok
        assert found.lowest < -1e-2


def test_what_is_no_sketch_says_so():
    A, Omega = symmetric(*SIX), normal(1, 3, N)
    assert nystrom(Omega @ A * float("nan"), Omega, space()).reason == "not finite"
    Omega[2] = Omega[1]
    assert nystrom(Omega @ A, Omega, space()).reason == "dependent"
    assert not float(nystrom(0 * Omega[:2], Omega[:2], space()).values.abs().max())


# ---------------------------------------------------------------- the method


class Loop:
    """A linear model with a squared error, curvature `x'x / 6` in each row; SGD with the method behind it."""

    def __init__(self, method, lr=0.1, momentum=0.0, loss=None, net=None):
        self.net = nn.Linear(8, 1, bias=False).double() if net is None else net
        self.x = normal(3, 6, 8) * torch.logspace(0, -1.5, 8, dtype=torch.float64)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=lr, momentum=momentum)
        self.engine = None if method is None else attach(self.net, self.optimizer, method)
        self.loss = loss or (lambda f: F.mse_loss(f, torch.ones_like(f)) / 2)

    def closure(self):
        self.optimizer.zero_grad()
        loss = self.loss(self.net(self.x))
        loss.backward()
        return loss

    def step(self, steps=1):
        for _ in range(steps):
            self.optimizer.step(self.closure)
        return torch.cat([p.detach().flatten() for p in self.net.parameters()])

    @property
    def numbers(self):
        return self.engine.state.numbers

    @property
    def curvature(self):
        return self.x.mT @ self.x / 6


@pytest.mark.parametrize("curvature", ["gauss-newton", "hessian"])
def test_steps_are_divided_by_the_damped_curvature(curvature):
    torch.manual_seed(0)
    loop = Loop(Nystrom(rank=6, rho=0.5, curvature=curvature), momentum=0.9)
    A = loop.curvature
    start = loop.step(0)
    rho = 0.5 * float(torch.linalg.eigvalsh(A)[2])  # Six of eight are not zero.
    divided = rho * torch.linalg.inv(A + rho * torch.eye(8).double())
    expected, buffer = start, torch.zeros(8).double()
    for _ in range(3):
        buffer = 0.9 * buffer + A @ expected - loop.x.mean(0)
        expected = expected - 0.1 * divided @ buffer
    torch.testing.assert_close(loop.step(3), expected, rtol=0, atol=1e-5)
    assert loop.engine.scalars()["curv/lambda_rank"] == pytest.approx(2 * rho, rel=1e-3)


def test_the_sketch_follows_the_largest_curvatures():
    """One random sketch of two in eight directions is well below them; from its eigenvectors it is not."""
    loop = Loop(Nystrom(rank=2, every=3))
    loop.step(10)
    expected = torch.linalg.eigvalsh(loop.curvature).flip(0)[:2]
    torch.testing.assert_close(loop.numbers["values"], expected, rtol=2e-2, atol=0)
    assert int(loop.numbers["sketches"]) == 3 + 3


def test_a_sketch_is_made_every_so_many_steps():
    loop, ages = Loop(Nystrom(rank=2, every=3)), []
    evaluations = []
    for _ in range(5):
        loop.step()
        ages.append(loop.engine.scalars()["curv/age"])
        evaluations.append(loop.engine.memory.counts.evaluations)
    assert ages == [0, 1, 2, 0, 1]
    assert evaluations == [6, 6, 6, 8, 8]


def test_a_hessian_with_negative_eigenvalues_is_misuse():
    loop = Loop(Nystrom(rank=2, curvature="hessian"), loss=lambda f: f.cos().mean())
    with torch.no_grad():
        loop.net.weight.fill_(0.01)  # Of the cosine the top.
    with pytest.raises(ConfigError, match=r"Nystrom\(curvature='hessian'\): at step 1 .* not convex.*gauss-newton"):
        loop.step()


def test_a_network_has_a_gauss_newton_matrix():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    loop = Loop(Nystrom(rank=4, every=2), net=net, loss=lambda f: F.cross_entropy(f, torch.arange(6) % 3))
    loop.x = loop.x.float()
    first = loop.closure().item()
    loop.step(30)
    assert int(loop.numbers["failed"]) == 0
    assert loop.closure().item() < first


def test_convex_in_single_precision_is_no_misuse():
    torch.manual_seed(0)
    net = nn.Linear(8, 3)
    loop = Loop(
        Nystrom(rank=20, every=1, curvature="hessian"),
        net=net,
        loss=lambda f: F.cross_entropy(f, torch.arange(6) % 3),
    )
    loop.x = loop.x.float()
    loop.step(8)  # Of rank 12 at most: eigenvalues that are zero.
    assert int(loop.numbers["sketches"]) == 3 + 7


def test_without_a_sketch_the_base_steps():
    loop, alone = (Loop(method) for method in (Nystrom(rank=2, curvature="hessian"), None))
    alone.net.load_state_dict(loop.net.state_dict())
    loop.engine.method.__dict__["_sketch"] = lambda *_: None
    torch.testing.assert_close(loop.step(2), alone.step(2), rtol=0, atol=0)


def test_products_that_are_not_finite_are_counted_and_the_last_sketch_is_kept():
    loop = Loop(Nystrom(rank=2, every=1))
    loop.step()
    before = loop.numbers["values"].clone()
    factors = iter([1.0, 1.0, float("nan"), 1.0, float("nan")])  # The training's, then those of the predictions.
    loop.loss = lambda f: F.mse_loss(f * next(factors), torch.ones_like(f)) / 2
    loop.step()
    assert int(loop.numbers["failed"]) == 1
    torch.testing.assert_close(loop.numbers["values"], before, rtol=0, atol=0)


def test_what_cannot_work_is_refused():
    for base in (torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad):
        net = nn.Linear(3, 2)
        with pytest.raises(ConfigError, match=r"divides by its own second moment already: use torch.optim.SGD"):
            attach(net, base(net.parameters()), Nystrom())
    net = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match=r"Nystrom\(rank=10\): there are 8 numbers to train"):
        attach(net, torch.optim.SGD(net.parameters()), Nystrom())
    with pytest.raises(ConfigError, match=r"curvature must be one of \['gauss-newton', 'hessian'\]"):
        Nystrom(curvature="measured")
    with pytest.raises(ConfigError, match="rho must be a number"):
        Nystrom(rho=0)
