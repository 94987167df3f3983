"""Few directions against dense linear algebra in float64: frames, regressions, buffers, steps."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from lightning_so import OGR, AutoStep, ConfigError, FewDirections, QuadraticModel, attach
from lightning_so.linalg.frame import beside, orthonormal, turned
from lightning_so.linalg.parabola import regression, strides
from lightning_so.linalg.vectors import Piece, Space


def space(n):
    return Space((Piece("w", 0, n, n),), dtype=torch.float64)


class Point(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(w, dtype=torch.float64).clone())


def spread(values, seed=0):
    """A symmetric matrix of given eigenvalues, and its eigenvectors as columns."""
    values = torch.as_tensor(values, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=torch.manual_seed(seed)).double())[0]
    return Q @ torch.diag(values) @ Q.T, Q


def run(loss, w, method, steps, lr=1e-3, base=torch.optim.SGD, **arguments):
    model = Point(w)
    optimizer = base(model.parameters(), lr=lr, **arguments)
    engine = attach(model, optimizer, method)

    def closure():
        optimizer.zero_grad()
        value = loss(model.w)
        value.backward()
        return value

    values = [optimizer.step(closure).item() for _ in range(steps)]
    return model.w.detach().clone(), engine, values


# ---------------------------------------------------------------- frames


def test_a_frame_is_orthonormal_spans_the_same_and_flips_no_sign():
    X = torch.randn(4, 50).double() * torch.tensor([1e-6, 1.0, 1e4, 1.0]).double()[:, None]
    X[3] = X[1] + 1e-2 * X[3]
    found = orthonormal(X, space(50))
    assert found.ok
    torch.testing.assert_close(found.value @ found.value.T, torch.eye(4).double(), atol=1e-13, rtol=0)
    # Rows are found from those before: their mixing is lower triangular, with a positive diagonal.
    L = X @ found.value.T
    assert (L.triu(1).abs() < 1e-12 * X.norm(dim=1)[:, None]).all()
    assert (L.diagonal() > 0).all()
    # The trap: one row whose first number is zero flips at every step under a plain QR.
    x = torch.tensor([[0.0, 3.0, 4.0]]).double()
    for _ in range(3):
        x = orthonormal(x, space(3)).value
    torch.testing.assert_close(x, torch.tensor([[0.0, 0.6, 0.8]]).double())


@pytest.mark.parametrize("rows", [torch.ones(2, 5), torch.zeros(2, 5), torch.full((2, 5), math.nan)])
def test_dependent_rows_are_no_frame(rows):
    assert not orthonormal(rows.double(), space(5)).ok


def test_what_a_vector_has_beside_others():
    V = orthonormal(torch.randn(3, 20).double(), space(20)).value
    x = torch.randn(20).double()
    found = beside(V, 1e-9 * x, space(20))
    rest = x - V.T @ (V @ x)
    torch.testing.assert_close(found, rest / rest.norm())
    for nothing in (V.T @ torch.randn(3).double(), torch.zeros(20).double(), x * math.nan):
        assert beside(V, nothing, space(20)) is None
    V[1] = 0
    assert abs(float(beside(V, x, space(20)) @ V[0])) < 1e-14


def test_a_form_turns_with_its_frame():
    H, _ = spread(torch.randn(20))
    V = orthonormal(torch.randn(4, 20).double(), space(20)).value
    R = torch.linalg.qr(torch.randn(4, 4).double())[0]
    W = R @ V
    torch.testing.assert_close(turned(V @ H @ V.T, V, W, space(20)), W @ H @ W.T)


# ---------------------------------------------------------------- regressions


def moments(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return x.T @ x / len(x), y.T @ x / len(x)


def test_a_form_stays_on_the_cpu_where_the_frame_is_on_a_device():
    with FakeTensorMode():
        V = torch.empty(2, 5, device="cuda")
        on = replace(space(5), device="cuda")
        found = turned(torch.zeros(2, 2, dtype=torch.float64), V, V, on)
    assert found.device == torch.device("cpu")


def test_regression_is_exact_from_one_point_more_than_directions():
    A, _ = spread([3.0, 1.0, -0.5, 0.1])
    x = torch.randn(5, 4).double()
    assert (regression(*moments(x, x @ A)) - A).abs().max() < 1e-11
    # Of fewer it is the best symmetric fit: better than the symmetric part of the plain one.
    C, D = moments(x[:4], x[:4] @ A)
    plain = D @ torch.linalg.pinv(C, hermitian=True)
    ours, theirs = ((H - A).norm() for H in (regression(C, D), (plain + plain.T) / 2))
    assert 1e-3 < ours < theirs


def test_regression_of_noise_is_the_least_squares_fit_among_symmetric_matrices():
    x, y = torch.randn(30, 3).double(), torch.randn(30, 3).double()
    C, D = moments(x, y)
    H = regression(C, D)
    x, y = x - x.mean(0), y - y.mean(0)
    for _ in range(10):
        E = torch.randn(3, 3).double()
        for sign in (1, -1):
            other = H + sign * 1e-3 * (E + E.T)
            assert (y - x @ other).square().sum() > (y - x @ H).square().sum()


def test_directions_in_which_nothing_moved_say_nothing():
    H = regression(torch.diag(torch.tensor([1.0, 0.0]).double()), torch.tensor([[2.0, 0.0], [0.0, 0.0]]).double())
    torch.testing.assert_close(H, torch.tensor([[2.0, 0.0], [0.0, 0.0]]).double())
    assert not regression(torch.zeros(2, 2).double(), torch.zeros(2, 2).double()).any()


def test_strides_are_to_the_extremum_and_bounded():
    found = strides(torch.tensor([4.0, -0.5, 0.0, 1e-9]).double(), 3.0)
    torch.testing.assert_close(found, torch.tensor([0.25, 2.0, 3.0, 3.0]).double())


# ---------------------------------------------------------------- steps on quadratics


def quadratic(H, b):
    return lambda w: 0.5 * w @ H @ w - b @ w


@pytest.mark.parametrize("values", [[5.0, 2.0, 1.0, 0.3], [5.0, 2.0, 1.0, -0.3]])
def test_all_directions_regressed_land_on_the_stationary_point(values):
    H, Q = spread(values)
    b, start = torch.randn(4).double(), torch.randn(4).double()
    wanted = torch.linalg.solve(H, b)
    method = OGR(k=4, share=1.0, cap=math.inf, beta=0.3, gamma=1.0)
    # Bounded steps first, so that the points are distinct; curvatures are exact from the fifth on.
    model, engine, _ = run(quadratic(H, b), start, OGR(k=4, share=1.0, cap=3.0, beta=0.3, gamma=1.0), 8, lr=0.02)
    V = engine.state.vectors["V"]
    torch.testing.assert_close(engine.state.numbers["H"], V @ H @ V.T, atol=1e-6, rtol=0)
    engine.method = method
    before = model - wanted
    optimizer = engine.optimizer
    weights = next(iter(optimizer.param_groups[0]["params"]))

    def closure():
        optimizer.zero_grad()
        value = quadratic(H, b)(weights)
        value.backward()
        return value

    optimizer.step(closure)
    after = Q.T @ (weights.detach() - wanted)
    before = Q.T @ before
    # To a minimum, and as far again away from a maximum.
    expected = torch.where(torch.tensor(values) > 0, 0.0, 2 * before)
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_the_buffer_holds_the_form_of_the_hessian(k):
    H, _ = spread(torch.cat([torch.tensor([20.0, 10.0, -4.0]), torch.linspace(-0.5, 1, 27)]))
    start = 1e-3 * torch.randn(30).double()
    _, engine, _ = run(quadratic(H, torch.zeros(30).double()), start, FewDirections(k, every=1, share=0.1), 12 * k)
    V, numbers = engine.state.vectors["V"], engine.state.numbers
    torch.testing.assert_close(V @ V.T, torch.eye(k).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(numbers["M"], V @ H @ V.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(engine.state.vectors["HV"], V @ H, atol=1e-5, rtol=0)
    scalars = engine.scalars()
    assert scalars["curv/age"] <= k
    found = torch.linalg.eigvalsh(numbers["M"])
    assert found[-1] == pytest.approx(20.0, rel=1e-2)
    if k > 2:
        assert found[0] == pytest.approx(-4.0, rel=1e-2)
    if k > 4:
        assert found[-2] == pytest.approx(10.0, rel=1e-2)


def test_without_a_cap_rows_that_are_empty_yet_are_no_step():
    H, _ = spread(torch.linspace(0.5, 4, 12))
    for method in (FewDirections(k=3, every=1, cap=math.inf), OGR(k=3, cap=math.inf)):
        _, engine, _ = run(quadratic(H, torch.ones(12).double()), torch.ones(12).double(), method, 4, lr=0.01)
        assert engine.memory.counts.refused == 0


def test_inside_the_frame_is_the_parabola_and_outside_the_base():
    H, _ = spread(torch.linspace(0.5, 4, 12))
    b, start = torch.randn(12).double(), torch.randn(12).double()
    method = FewDirections(k=3, every=1, share=1.0, cap=math.inf)
    w, engine, _ = run(quadratic(H, b), start, method, 9, lr=0.01)
    V = engine.state.vectors["V"]
    before = engine._rows[0]
    g = H @ before - b
    inside = -V.T @ torch.linalg.solve(V @ H @ V.T, V @ g)
    outside = -0.01 * (g - V.T @ (V @ g))
    torch.testing.assert_close(w - before, inside + outside, atol=1e-6, rtol=0)


def test_turning_the_frame_or_flipping_its_rows_changes_no_step():
    H, _ = spread([5.0, 2.0, -1.0, 0.5, 0.1])
    start = torch.randn(5).double()
    ends = []
    for turn in (
        None,
        torch.diag(torch.tensor([1.0, -1.0, -1.0]).double()),
        torch.linalg.qr(torch.randn(3, 3).double())[0],
    ):
        for method in (FewDirections(k=3, every=1), OGR(k=3)):
            _, engine, _ = run(quadratic(H, torch.ones(5).double()), start, method, 6)
            vectors, numbers = engine.state.vectors, engine.state.numbers
            if turn is not None:
                for name in {"V", "HV"} & vectors.keys():
                    vectors[name].copy_(turn @ vectors[name])
                for name in {"M", "C", "D", "H"} & numbers.keys():
                    numbers[name].copy_(turn @ numbers[name] @ turn.T)
            # No look at this step: what was known is what counts.
            object.__setattr__(engine.method, "every", 1000)
            if isinstance(method, OGR):
                object.__setattr__(engine.method, "curvature", "same-batch")
            params = engine.optimizer.param_groups[0]["params"][0]

            def closure(params=params, optimizer=engine.optimizer):
                optimizer.zero_grad()
                loss = quadratic(H, torch.ones(5).double())(params)
                loss.backward()
                return loss

            engine.optimizer.step(closure)
            ends.append(params.detach().clone())
    for number in (2, 3, 4, 5):
        torch.testing.assert_close(ends[number], ends[number % 2], atol=1e-10, rtol=0)


def test_the_distance_is_that_to_the_extremum():
    H, Q = spread([8.0, 1.0, 0.5, 0.2])
    wanted = torch.randn(4).double()
    _, engine, _ = run(
        quadratic(H, H @ wanted), wanted + torch.ones(4).double(), FewDirections(4, 1, share=0.0), 20, lr=0.0001
    )
    before = engine._rows[0]
    assert engine.scalars()["curv/distance"] == pytest.approx(abs(float(Q[:, 0] @ (before - wanted))), rel=1e-4)


def test_a_product_that_is_not_finite_leaves_its_row():
    H, _ = spread([5.0, 2.0, 1.0])
    calls = []

    def loss(w):
        calls.append(1)
        # Calls after the training's own in steps 7 and later are looks.
        broken = math.nan if len(calls) > 25 and not torch.equal(w, where[0]) else 1.0
        return broken * (0.5 * w @ H @ w)

    model = Point(torch.ones(3))
    where = [model.w.detach().clone()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    engine = attach(model, optimizer, FewDirections(k=2, every=1))

    def closure():
        optimizer.zero_grad()
        value = loss(model.w)
        value.backward()
        return value

    for _ in range(20):
        where[0] = model.w.detach().clone()
        optimizer.step(closure)
    scalars = engine.scalars()
    assert scalars["curv/failed"] >= 5
    assert scalars["curv/age"] >= 5
    assert model.w.isfinite().all()
    V = engine.state.vectors["V"]
    torch.testing.assert_close(engine.state.numbers["M"], V @ H @ V.T, atol=1e-6, rtol=0)


def test_one_number_more_is_one_direction_too_many():
    for method in (FewDirections(k=4), OGR(k=4)):
        with pytest.raises(ConfigError, match=r"\(k=4\): there are 3 numbers to train: k can be at most that"):
            run(lambda w: w.sum(), torch.ones(3), method, 1)


# ---------------------------------------------------------------- step lengths


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("lr", [1e-6, 1e-3, 1e3])
def test_the_rate_that_was_given_does_not_matter(base, lr):
    H, _ = spread(torch.linspace(0.5, 5, 10))
    start = torch.randn(10).double()
    method = AutoStep(every=1, memory=0.5)
    _, engine, values = run(quadratic(H, torch.zeros(10).double()), start, method, 200, lr=lr, base=base)
    assert values[-1] < 1e-2 * values[0]
    assert max(values) < 100 * values[0]  # No step was much too long, the first neither.
    assert engine.memory.counts.evaluations == 200


def test_a_first_step_into_nowhere_is_shortened():
    _, engine, values = run(lambda w: (w @ w).exp(), [1.0, 2.0], AutoStep(every=2), 60, lr=1e6)
    assert engine.scalars()["curv/failed"] >= 1
    assert values[-1] < 1.1


def test_the_factor_is_the_best_length_along_the_step():
    # One number: the parabola is the loss, and a step at the right length is the last.
    _, engine, values = run(lambda w: 2 * w @ w, [3.0], AutoStep(every=1, memory=0.0), 12, lr=0.1)
    assert values[-1] < 1e-20
    assert engine.scalars()["curv/along_step"] == pytest.approx(4.0)


def test_a_scheduler_multiplies_what_the_parabola_gives():
    factors = []
    for halved in (False, True):
        model = Point(torch.ones(4))
        H, _ = spread([4.0, 3.0, 2.0, 1.0])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t, halved=halved: 0.5 if halved else 1.0)
        engine = attach(model, optimizer, AutoStep(every=2, memory=0.0))

        def closure(model=model, optimizer=optimizer, H=H):
            optimizer.zero_grad()
            loss = 0.5 * model.w @ H @ model.w
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
            schedule.step()
        factors.append(float(engine.state.numbers["slope"] / engine.state.numbers["curvature"]))
    # Of a straight first step both say the same of the whole rate.
    assert factors[0] == pytest.approx(factors[1], rel=0.1)


def test_two_directions_of_a_quadratic_are_conjugate_gradients():
    H, _ = spread([1.0, 4.0, 9.0, 16.0, 25.0])
    b = torch.randn(5).double()
    w, _, _ = run(
        quadratic(H, b), torch.randn(5).double(), QuadraticModel(initial=0.0, adapt=0, growth=math.inf), 6, lr=1.0
    )
    assert (w - torch.linalg.solve(H, b)).abs().max() < 1e-6


@pytest.mark.parametrize("method", [FewDirections(2, 1), OGR(2), QuadraticModel(), AutoStep(1)])
def test_a_constant_curvature_is_another_training(method):
    H, _ = spread([9.0, 3.0, 1.0])
    ablated = type(method)(**{**vars(method), "curvature": "constant"})
    ends = [
        run(
            quadratic(H, torch.ones(3).double()),
            torch.randn(3, generator=torch.manual_seed(5)).double(),
            m,
            20,
            lr=0.05,
        )[0]
        for m in (method, ablated)
    ]
    assert (ends[0] - ends[1]).abs().max() > 1e-4
    assert ends[1].isfinite().all()
