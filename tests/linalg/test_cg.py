"""Conjugate gradients against dense solves, their ends, and the ways back from where they end."""

import math

import pytest
import torch

from lightning_so.linalg.backtrack import armijo, backtracked
from lightning_so.linalg.cg import Iterate, cg, stalled
from lightning_so.linalg.nystrom import nystrom
from lightning_so.linalg.vectors import Piece, Space
from tests.support.spectra import EVERY, PRECISIONS, factor


def space(n, dtype=torch.float64):
    """One parameter of n numbers."""
    return Space((Piece("w", 0, n, n),), dtype=dtype)


def turned(values, seed=0):
    """A dense symmetric matrix with these eigenvalues."""
    n = len(values)
    Q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    return Q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ Q.mT


def solve(A, b, **options):
    options = {"steps": 1000, "tolerance": 1e-12, "progress": False, **options}
    return cg(lambda v: A @ v, b, space(len(b)), **options)


@pytest.mark.parametrize(("values", "iterations"), [([1.0, 4.0, 9.0] * 7, 3), ([1.0] * 20 + [2.0, 4.0, 7.0, 11.0], 5)])
def test_as_many_iterations_as_eigenvalues(values, iterations):
    A, b = turned(values), space(len(values)).normal(0)
    found = solve(A, b)
    assert (found.iterations, found.why, found.ok) == (iterations, "residual", True)
    expected = torch.linalg.solve(A, b)
    assert float((found.value - expected).norm() / expected.norm()) < 1e-13
    assert found.change == pytest.approx(float(-b @ expected / 2), rel=1e-12)
    torch.testing.assert_close(found.rest, b - A @ found.value, rtol=0, atol=1e-11)


def test_what_is_known_of_every_iterate_is_so():
    A, b, x = turned([0.5 * 1.3**k for k in range(12)]), space(12).normal(0), space(12).normal(1)
    for start in (None, x):
        for steps in range(1, 9):
            found = solve(A, b, steps=steps, start=start)
            at, r = found.value, b - A @ found.value
            assert found.iterations == steps
            assert found.why == "iterations"
            assert found.change == pytest.approx(float(at @ A @ at / 2 - b @ at), rel=1e-11)
            assert found.residual == pytest.approx(float(r.norm() / b.norm()), rel=1e-9)
            p = found.direction
            assert found.curvature == pytest.approx(float(p @ A @ p / (p @ p)), rel=1e-12)
            assert abs(float(p @ r)) < 1e-12
            assert abs(float(found.before @ r)) < 1e-9 * float(b @ b)


def test_the_exact_solution_for_a_start_takes_no_iteration():
    A, b = turned([1.0, 2.0, 3.0, 4.0]), space(4).normal(0)
    expected = torch.linalg.solve(A, b)
    found = solve(A, b, start=expected)
    assert (found.iterations, found.why) == (0, "residual")
    assert torch.equal(found.value, expected)
    assert solve(A, torch.zeros_like(b)).why == "residual"


def test_a_start_is_not_changed():
    A, b, x = turned([1.0, 2.0, 3.0, 4.0]), space(4).normal(0), space(4).normal(1)
    kept = x.clone()
    solve(A, b, start=x)
    assert torch.equal(x, kept)


def test_a_solve_goes_on_from_the_direction_of_another():
    A, b = turned([0.1 * 1.5**k for k in range(10)]), space(10).normal(0)
    whole = solve(A, b, steps=7)
    one = solve(A, b, steps=4)
    r, before, p = one.rest, one.before, one.direction
    first = r + (r @ (r - before)) / (before @ before) * p
    other = solve(A, r, steps=3, first=first)
    torch.testing.assert_close(one.value + other.value, whole.value, rtol=1e-9, atol=1e-11)
    lost = solve(A, r, steps=3)
    assert float((one.value + lost.value - whole.value).norm()) > 1e-3


def test_a_preconditioned_solve_is_the_dense_one():
    scales = torch.logspace(-2, 2, 30, dtype=torch.float64)
    A = torch.diag(scales.sqrt()) @ turned([1.0 + 0.1 * k for k in range(30)]) @ torch.diag(scales.sqrt())
    b, expected = space(30).normal(0), None
    expected = torch.linalg.solve(A, b)
    found, plain = solve(A, b, precondition=lambda v: v / scales), solve(A, b)
    assert float((found.value - expected).norm() / expected.norm()) < 1e-9
    assert found.iterations < 30 < plain.iterations
    # It is the plain solve of the scaled system.
    D = torch.diag(scales.rsqrt())
    scaled = solve(D @ A @ D, D @ b, steps=6)
    torch.testing.assert_close(
        solve(A, b, steps=6, precondition=lambda v: v / scales).value, D @ scaled.value, rtol=1e-9, atol=1e-12
    )


def test_the_stop_is_that_of_martens():
    # After 11 iterations the window is 10: q fell by a share of (q_11 - q_1) / q_11, and 10 x 5e-4 is too little.
    def changes(fell, below=-1.0):
        return [0.0, below * (1 - fell), *[below * (1 - fell / 2)] * 9, below]

    assert stalled(changes(0.0049))
    assert not stalled(changes(0.0051))
    assert not stalled(changes(0.0049)[1:])
    assert not stalled(changes(0.0, below=0.0))
    assert not stalled(changes(0.0049, below=1.0))


def test_the_window_grows():
    changes = [-1.0] * 200 + [-1.02] * 21
    assert stalled([*changes[:199], -1.0, -1.0])
    # After 220 the window is 22, and 2 % in it are more than 22 x 5e-4; in the last 10 there was nothing.
    assert not stalled(changes)


def test_it_stops_where_it_does_not_go_on():
    A = torch.diag(torch.logspace(0, 4, 400, dtype=torch.float64))
    b = torch.ones(400, dtype=torch.float64)
    found = solve(A, b, progress=True)
    assert found.why == "progress"
    assert found.iterations < solve(A, b, steps=5000).iterations
    assert solve(A, b, steps=5000, tolerance=0.5).residual <= 0.5


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_it_leaves_where_the_system_is_not_positive(low):
    A, b = torch.diag(torch.tensor([3.0, 2.0, low], dtype=torch.float64)), torch.ones(3, dtype=torch.float64)
    down = b * torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    found = solve(A, down)
    assert (found.iterations, found.why, found.ok) == (0, "negative", True)
    assert torch.equal(found.value, down)
    assert found.curvature == low
    found = solve(A, b)
    assert found.why == "negative"
    assert found.iterations > 0
    assert found.curvature <= 1e-12
    assert found.change == pytest.approx(float(found.value @ A @ found.value / 2 - b @ found.value))
    assert found.change < 0


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("warm", [False, True])
def test_a_product_that_is_not_finite_ends_it(at, warm):
    A, b, calls = turned([1.0 + k for k in range(8)]), space(8).normal(0), []

    def product(v):
        calls.append(1)
        return A @ v * (float("nan") if len(calls) > at + warm else 1.0)

    start = 0.1 * b if warm else None
    found = cg(product, b, space(8), steps=8, start=start, progress=False, tolerance=0.0)
    assert (found.ok, found.why, found.iterations) == (False, "broken", at)
    torch.testing.assert_close(found.value, solve(A, b, steps=at, start=start).value, rtol=0, atol=1e-12)
    assert math.isfinite(found.change)
    broken = cg(lambda v: v * float("nan"), b, space(8), steps=8, start=b)
    assert not broken.ok
    assert torch.equal(broken.value, b)


@EVERY
@PRECISIONS
@pytest.mark.parametrize("damping", [0.0, 1e-4, 1e-2])
def test_spectra_that_fall_are_solved_to_the_tolerance(spectrum, dtype, damping):
    A = (factor(64, spectrum)[0] + damping * torch.eye(64)).to(dtype)
    x = space(64, dtype).normal(3)
    b = (A.double() @ x.double()).to(dtype)  # of the range, where there is a null space
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    found = cg(lambda v: A @ v, b, space(64, dtype), steps=400, tolerance=tolerance, progress=False)
    assert found.why == "residual"
    rest = b.double() - A.double() @ found.value.double()
    assert float(rest.norm() / b.double().norm()) < 1.5 * tolerance
    # The recursion has not run away from the truth, and the model is as low as it is at the solution.
    assert float((rest - found.rest.double()).norm()) < 20 * torch.finfo(dtype).eps * float(b.norm())

    def q(y):
        return float(y @ A.double() @ y / 2 - b.double() @ y)

    assert q(found.value.double()) - q(x.double()) < 1e-7 * abs(q(x.double()))
    assert found.change == pytest.approx(q(found.value.double()), rel=1e-5)


def test_iterates_are_kept_ever_farther_apart():
    A, b = turned([1.1**k for k in range(60)]), space(60).normal(0)
    found = solve(A, b, steps=30, keep=100)
    assert [iterate.iteration for iterate in found.kept] == [1, 2, 3, 4, 5, 7, 9, 11, 14, 18, 24, 30]
    for iterate in found.kept:
        alone = solve(A, b, steps=iterate.iteration)
        torch.testing.assert_close(iterate.value, alone.value, rtol=0, atol=1e-12)
        assert iterate.change == pytest.approx(alone.change)
    assert [iterate.iteration for iterate in solve(A, b, steps=30, keep=3).kept] == [18, 24, 30]
    assert solve(A, b, steps=30).kept == ()


def test_walking_back_ends_where_the_loss_rises():
    kept = [Iterate(i, torch.tensor(float(i)), -float(i)) for i in range(6)]
    asked = []

    def loss(of):
        def at(x):
            asked.append(int(x))
            return of[int(x)]

        return at

    assert backtracked(kept, loss([0.0, 9.0, 3.0, 2.0, 4.0, 5.0]))[0].iteration == 3
    assert asked == [5, 4, 3, 2]
    assert backtracked(kept, loss([0.0, 9.0, 3.0, math.nan, math.inf, math.nan]))[0].iteration == 2
    assert backtracked(kept[:1], loss([7.0])) == (kept[0], 7.0)


def test_a_step_is_shortened_until_the_loss_falls_enough():
    asked = []

    def loss(a):
        asked.append(a)
        return math.nan if a > 0.6 else a * a - a

    assert armijo(loss, 0.0, -1.0, 20) == (pytest.approx(0.512), pytest.approx(0.512**2 - 0.512))
    assert asked == pytest.approx([1.0, 0.8, 0.64, 0.512])
    assert armijo(loss, 0.0, -1.0, 3) == (0.0, 0.0)
    assert armijo(loss, 0.0, 1.0, 20) == (0.0, 0.0)
    # A hundredth of what the slope promises is enough, and less is not.
    assert armijo(lambda a: -0.0101 * a, 0.0, -1.0, 20)[0] == 1.0
    assert armijo(lambda a: -0.0099 * a, 0.0, -1.0, 20)[0] == 0.0
    asked.clear()
    assert armijo(loss, 0.0, -1.0, 20, full=-5.0) == (1.0, -5.0)
    assert asked == []


def test_a_sketch_takes_the_large_eigenvalues_out_of_the_solve():
    # Eight large ones, which a sketch of rank 8 holds; beside them all are near one.
    large, rest = [10.0**k for k in range(1, 9)], [1e-3 * k for k in range(1, 33)]
    A, damping = turned([*large, *rest]), 1.0
    b, Omega = space(40).normal(0), torch.linalg.qr(torch.stack([space(40).normal(1, k) for k in range(8)]).mT).Q.mT
    sketch = nystrom(Omega @ A, Omega, space(40))
    damped = A + damping * torch.eye(40)
    plain = solve(damped, b, tolerance=1e-8)
    found = solve(damped, b, tolerance=1e-8, precondition=lambda v: sketch.precondition(v, damping, space(40)))
    torch.testing.assert_close(found.value, torch.linalg.solve(damped.double(), b), rtol=0, atol=1e-6)
    assert 2 * found.iterations < plain.iterations
