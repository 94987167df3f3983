"""Curvature-vector products against dense Hessians in float64, and the orders of their errors."""

import itertools
import math

import pytest
import torch
from torch import nn

from lightning_so.linalg.lanczos import lanczos
from lightning_so.linalg.products import STEPS, DoubleBackward, FiniteDifference, GaussNewton, moved
from lightning_so.linalg.vectors import Piece, Space
from tests.support.spectra import EVERY, PRECISIONS, factor


class Problem:
    """A small network, its loss, and the dense Hessian and Gauss-Newton matrix of it."""

    def __init__(self, loss="ce", dtype=torch.float64, linear=False):
        torch.manual_seed(0)
        middle = [] if linear else [nn.Linear(6, 6), nn.Tanh()]
        # Drawn in one precision, so that problems of both are the same.
        self.model = nn.Sequential(*middle, nn.Linear(6, 4)).to(dtype)
        self.x, y = torch.randn(16, 6).to(dtype), torch.randint(4, (16,))
        target = nn.functional.one_hot(y, 4).to(dtype)
        self.of = {
            "ce": lambda f: nn.functional.cross_entropy(f, y),
            "mse": lambda f: (f - target).square().sum(1).mean(),
        }[loss]
        self.params = list(self.model.parameters())
        pieces = [Piece(name, 0, p.numel(), p.numel()) for name, p in self.model.named_parameters()]
        self.space = Space(tuple(pieces), dtype=dtype)

    def loss(self):
        return self.of(self.model(self.x))

    def gradient(self):
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(self.loss(), self.params)])

    def at(self, flat):
        names = [name for name, _ in self.model.named_parameters()]
        parts = flat.split([p.numel() for p in self.params])
        return {n: part.view(p.shape) for n, part, p in zip(names, parts, self.params, strict=True)}

    def hessian(self):
        flat = torch.cat([p.detach().reshape(-1) for p in self.params])
        called = lambda w: self.of(torch.func.functional_call(self.model, self.at(w), (self.x,)))  # noqa: E731
        return torch.func.hessian(called)(flat)

    def gauss_newton(self):
        flat = torch.cat([p.detach().reshape(-1) for p in self.params])
        J = torch.func.jacrev(lambda w: torch.func.functional_call(self.model, self.at(w), (self.x,)))(flat)
        f = self.model(self.x).detach()
        H = torch.func.hessian(self.of)(f).reshape(f.numel(), f.numel())
        return J.reshape(f.numel(), -1).mT @ H @ J.reshape(f.numel(), -1)


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_double_backward_is_the_hessian(loss):
    problem = Problem(loss)
    product, H = DoubleBackward(problem.loss, problem.params), problem.hessian()
    torch.testing.assert_close(torch.stack([product(v) for v in torch.eye(len(H)).double()]), H, rtol=0, atol=1e-14)
    torch.testing.assert_close(product.gradient, problem.gradient())
    assert all(p.grad is None for p in problem.params)


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_gauss_newton_is_the_dense_one_and_never_negative(loss):
    problem = Problem(loss)
    product, G = GaussNewton(problem.model(problem.x), problem.of, problem.params), problem.gauss_newton()
    found = torch.stack([product(v) for v in torch.eye(len(G)).double()])
    torch.testing.assert_close(found, G, rtol=0, atol=1e-14)
    assert torch.linalg.eigvalsh(found).min() > -1e-13
    assert torch.linalg.eigvalsh(problem.hessian()).min() < -1e-3


def test_of_a_linear_model_it_is_the_hessian():
    problem = Problem(linear=True)
    torch.testing.assert_close(problem.gauss_newton(), problem.hessian(), rtol=0, atol=1e-14)
    product, v = GaussNewton(problem.model(problem.x), problem.of, problem.params), problem.space.normal(0)
    torch.testing.assert_close(product(v), problem.hessian() @ v, rtol=0, atol=1e-14)


def difference(problem, **named):
    return FiniteDifference([p.data for p in problem.params], problem.gradient, problem.space, **named)


def test_the_errors_are_of_first_and_second_order():
    problem = Problem()
    H, v = problem.hessian(), problem.space.normal(0)
    for central, order in ((False, 1), (True, 2)):
        errors = [float((difference(problem, step=r, central=central)(v) - H @ v).norm()) for r in (4e-3, 2e-3, 1e-3)]
        for coarse, fine in itertools.pairwise(errors):
            assert abs(math.log2(coarse / fine) - order) < 0.1


def test_of_a_quadratic_every_step_is_exact():
    A = torch.randn(10, 10, dtype=torch.float64)
    A, w = A + A.mT, torch.randn(10, dtype=torch.float64)
    space = Space((Piece("w", 0, 10, 10),), dtype=torch.float64)
    v = space.normal(0)
    for step in (1e-3, 1.0, 100.0):
        for central in (False, True):
            product = FiniteDifference([w], lambda: A @ w, space, step=step, central=central)
            torch.testing.assert_close(product(v), A @ v, rtol=1e-10, atol=1e-10)


@EVERY
@PRECISIONS
@pytest.mark.parametrize("central", [False, True])
def test_of_spectra_that_fall_a_difference_loses_what_its_step_does(central, dtype, spectrum):
    A, w = factor(40, spectrum)[0].to(dtype), torch.randn(40).to(dtype)
    space = Space((Piece("w", 0, 40, 40),), dtype=dtype)
    product = FiniteDifference([w], lambda: A @ w, space, step=STEPS[dtype], central=central)
    for stream in range(3):
        v = space.normal(0, stream)
        error = (product(v).double() - A.double() @ v.double()).norm() / v.double().norm()
        # Gradients of length |A w| are subtracted, whose rounding is divided by the step; the largest of A is one.
        assert float(error) < 2 * torch.finfo(dtype).eps / STEPS[dtype]


@pytest.mark.parametrize(("central", "limit"), [(False, 3e-3), (True, 1e-3)])
def test_in_float32_it_agrees_to_a_thousandth(central, limit):
    problem, exact = Problem(dtype=torch.float32), Problem()
    exact.model.load_state_dict({k: v.double() for k, v in problem.model.state_dict().items()})
    exact.x = problem.x.double()
    H = exact.hessian()
    product = difference(problem, step=STEPS[torch.float32], central=central)
    for stream in range(5):
        v = problem.space.normal(0, stream)
        assert float((product(v).double() - H @ v.double()).norm() / (H @ v.double()).norm()) < limit
    assert product.calls == (10 if central else 6)


def test_weights_are_put_back_bit_for_bit_whatever_happens():
    problem = Problem(dtype=torch.float32)
    before = [p.detach().clone() for p in problem.params]
    product = difference(problem)
    product(problem.space.normal(0))
    inside = []

    def fails():
        with moved([p.data for p in problem.params], before, 3.0):
            inside.append(problem.params[0].detach().clone())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    torch.testing.assert_close(inside[0], 4 * before[0])
    assert all(torch.equal(p, b) for p, b in zip(problem.params, before, strict=True))
    assert float(product(torch.zeros(len(problem.space.normal(0)))).abs().sum()) == 0


def test_the_spectrum_of_a_network_is_that_of_the_dense_hessian():
    problem = Problem()
    L = torch.linalg.eigvalsh(problem.hessian())
    for product in (DoubleBackward(problem.loss, problem.params), difference(problem, step=1e-5, central=True)):
        values, _, errors = lanczos(product, problem.space.normal(0), 40, problem.space).ritz()
        torch.testing.assert_close(values[[0, -1]], L[[0, -1]], rtol=1e-6, atol=1e-6)
        assert errors[[0, -1]].max() < 1e-4


def test_a_block_is_the_diagonal_block():
    problem = Problem()
    H, v, numbers = problem.hessian(), problem.space.normal(0), [1, 3]
    places = torch.cat([torch.arange(36, 42), torch.arange(66, 70)])
    expected = H[places][:, places] @ v[places]
    assert torch.equal(problem.space.part(v, numbers), v[places])
    exact, central = DoubleBackward(problem.loss, problem.params), difference(problem, step=1e-5, central=True)
    torch.testing.assert_close(exact.block(numbers)(v[places]), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(central.block(numbers)(v[places]), expected, rtol=0, atol=1e-8)


def test_a_block_that_is_zero_is_moved_as_others_are():
    problem = Problem(dtype=torch.float32)
    problem.params[0].data.zero_()
    v = problem.space.normal(0)[:36]
    expected = problem.hessian()[:36, :36] @ v
    # Seen: .02, and 2.7 with steps relative to its own length.
    assert float((difference(problem).block([0])(v) - expected).norm() / expected.norm()) < 0.05
