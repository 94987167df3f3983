"""Newton-CG on losses whose minimum is known: at once and by slices, at saddles, on batches that change."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_so import ConfigError, NewtonCG, attach
from lightning_so.linalg.cg import cg
from lightning_so.linalg.vectors import Piece, Space
from tests.core.test_vector_oracle import asked

N = 12


class Point(nn.Module):
    """One vector of weights."""

    def __init__(self, at):
        super().__init__()
        self.at = nn.Parameter(torch.as_tensor(at, dtype=torch.float64))

    def forward(self, x=None):
        return self.at if x is None else x @ self.at


def squares(seed=0, rows=30):
    """Rows and right sides of a least-squares problem."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, N, generator=generator, dtype=torch.float64)
    x *= torch.linspace(0.3, 2.0, N, dtype=torch.float64)
    return x, torch.randn(rows, generator=generator, dtype=torch.float64)


def train(method, model, loss, steps, look=None):
    """Steps of a plain loop; `look` sees the engine after each. `loss` is of the model and the number of the step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine = attach(model, optimizer, method)
    for number in range(steps):

        def closure(number=number):
            optimizer.zero_grad()
            value = loss(model, number)
            value.backward()
            return value

        optimizer.step(closure)
        if look is not None:
            look(engine)
    engine.detach()
    return engine


def quadratic(x, y):
    return lambda model, _: F.mse_loss(model(x), y)


@pytest.mark.parametrize("curvature", ["gauss-newton", "hessian"])
def test_one_step_on_a_quadratic_is_at_its_minimum(curvature):
    x, y = squares()
    model = Point(torch.zeros(N))
    method = NewtonCG(curvature=curvature, damping=0.0)
    engine = train(method, model, quadratic(x, y), 1)
    expected = torch.linalg.lstsq(x, y).solution
    torch.testing.assert_close(model.at.detach(), expected, rtol=0, atol=1e-4)
    assert engine.scalars()["curv/residual"] <= 1e-5
    assert engine.scalars()["curv/step_length"] == 1.0


def test_a_slice_at_a_time_has_the_iterates_of_one_solve():
    x, y = squares()
    A, b, space = dense(x, y)
    for slice in (1, 3):
        model, ages = Point(torch.zeros(N)), []
        method = NewtonCG(damping=0.0, iterations=9, slice=slice)

        def look(engine, model=model, ages=ages):
            ages.append(engine.scalars()["curv/age"])
            found = cg(lambda v: A @ v, b, space, steps=len(ages) * engine.method.slice, progress=False)
            torch.testing.assert_close(model.at.detach(), found.value, rtol=0, atol=1e-4)
            assert engine.scalars()["curv/drift"] < 1e-4

        train(method, model, quadratic(x, y), 9 // slice, look)
        assert ages == [*range(1, 9 // slice), 0]
        # A solve that begins again with every slice is behind.
        alone = Point(torch.zeros(N))
        train(replace(method, iterations=slice), alone, quadratic(x, y), 9 // slice)
        losses = [
            quadratic(x, y)(m, 0).item() - float(((x @ torch.linalg.lstsq(x, y).solution) - y).square().mean())
            for m in (model, alone)
        ]
        assert losses[0] < 0.3 * losses[1]


def dense(x, y):
    """Hessian and right side of the mean square, and the space of its weights."""
    return 2 * x.mT @ x / len(x), 2 * x.mT @ y / len(x), Space((Piece("at", 0, N, N),), dtype=torch.float64)


def test_a_solve_begins_at_a_share_of_the_last_solution():
    x, y = squares()
    A, b, space = dense(x, y)
    model = Point(torch.zeros(N))
    train(NewtonCG(damping=0.0, iterations=2, decay=0.5), model, quadratic(x, y), 2)
    first = cg(lambda v: A @ v, b, space, steps=2).value
    second = cg(lambda v: A @ v, b - A @ first, space, steps=2, start=0.5 * first).value
    torch.testing.assert_close(model.at.detach(), first + second, rtol=0, atol=1e-6)
    assert float((cg(lambda v: A @ v, b - A @ first, space, steps=2).value - second).norm()) > 1e-3


def walled(x, y, radius):
    """A quadratic with a wall around it, which nothing at zero says anything of."""
    return lambda m, _: F.mse_loss(m(x), y) + 1e3 * (m().square().sum() - radius**2).clamp(min=0)


def test_the_way_back_is_over_iterates():
    x, y = squares()
    A, b, space = dense(x, y)
    iterates = [cg(lambda v: A @ v, b, space, steps=k).value for k in (2, 3)]
    radius = float(sum(iterate.norm() for iterate in iterates)) / 2
    model = Point(torch.zeros(N))
    # Without a limit rounding decides how long the solve is, 12 to 15 iterations, and of 15 the second is not kept.
    method = NewtonCG(damping=0.0, curvature="hessian", iterations=9)
    engine = train(method, model, walled(x, y, radius), 1)
    torch.testing.assert_close(model.at.detach(), iterates[0], rtol=0, atol=1e-6)
    assert engine.scalars()["curv/step_length"] == 1.0
    # A slice has one iterate: the step is shortened, and its direction is of no use to the next.
    model = Point(torch.zeros(N))
    engine = train(NewtonCG(damping=0.0, curvature="hessian", slice=3), model, walled(x, y, radius), 1)
    torch.testing.assert_close(model.at.detach(), 0.8 * iterates[1], rtol=0, atol=1e-6)
    assert engine.scalars()["curv/age"] == 0


def test_a_direction_of_another_loss_is_dropped():
    x, y = squares()
    drifts = []
    method = NewtonCG(slice=1)

    def flipping(m, k):
        return F.mse_loss(m(x), y if k % 2 else -y)

    train(method, Point(torch.zeros(N)), flipping, 6, lambda e: drifts.append(e.scalars()))
    assert all(found["curv/age"] == 1 and found["curv/drift"] > 1 for found in drifts[1:])
    drifts.clear()
    # Damping is not in what the next gradient will be.
    train(method, Point(torch.zeros(N)), quadratic(x, y), 6, lambda e: drifts.append(e.scalars()))
    assert drifts[-1]["curv/age"] == 6
    assert all(found["curv/drift"] < 1e-6 for found in drifts)


@pytest.mark.parametrize("slice", [0, 2])
def test_no_step_takes_more_than_its_share(slice):
    x, y = squares()
    model, spent = Point(torch.zeros(N)), [0]

    def loss(model, _):
        return F.mse_loss(model(x).tanh(), y)

    engine = train(NewtonCG(slice=slice), model, loss, 8, lambda e: spent.append(e.memory.counts.evaluations))
    products = [after - before for before, after in pairwise(spent)]
    assert (max(products) <= 2) == bool(slice)
    assert engine.scalars()["curv/cg_iterations"] <= max(products)


def test_damping_shrinks_where_the_model_is_right_and_grows_where_it_is_wrong():
    x, y = squares()
    dampings = []
    train(NewtonCG(), Point(torch.zeros(N)), quadratic(x, y), 4, lambda e: dampings.append(e.scalars()["curv/damping"]))
    assert dampings == pytest.approx([1.0, 2 / 3, 4 / 9, 8 / 27])

    class Turned(torch.autograd.Function):
        """A loss whose gradient points up."""

        @staticmethod
        def forward(ctx, loss):
            return -loss

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    dampings.clear()
    model = Point(torch.zeros(N))
    method = NewtonCG(curvature="hessian")
    engine = train(
        method,
        model,
        lambda m, k: Turned.apply(quadratic(x, y)(m, k)),
        3,
        lambda e: dampings.append(e.scalars()["curv/damping"]),
    )
    assert dampings == pytest.approx([1.5, 2.25, 3.375])
    assert engine.scalars()["curv/rejected"] == 3
    assert engine.scalars()["curv/step_length"] == 0
    assert not model.at.detach().any()


@pytest.mark.parametrize("slice", [0, 1, 2])
def test_a_saddle_is_left_by_negative_curvature(slice):
    def loss(model, _):
        x, y = model()
        return (x**2 - y**2) / 2 + y**4 / 4

    model, dampings = Point([1.0, 1e-3]), []
    method = NewtonCG(curvature="hessian", damping=0.1, slice=slice)
    engine = train(method, model, loss, 40, lambda e: dampings.append(e.scalars()["curv/damping"]))
    assert loss(model, 0).item() == pytest.approx(-0.25, abs=1e-6)
    assert engine.scalars()["curv/negative"] > 0
    assert max(dampings) > 0.1
    assert engine.scalars()["curv/failed"] == 0


def test_a_direction_that_bends_down_at_once_is_as_long_as_one_that_bends_up():
    # x^2 / 2 bends up; a hill of the same curvature is gone down by as much as a valley would be, damped.
    for sign in (1.0, -1.0):
        model = Point([1.0])
        train(NewtonCG(curvature="hessian", damping=0.5), model, lambda m, _, s=sign: s * m().square().sum() / 2, 1)
        assert float(model.at) - 1.0 == pytest.approx(-sign / 1.5, rel=1e-5)


def batches(sigma, size=N, pool=1000):
    """Noisy rows, a few a step; and the loss of all that there will ever be."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(pool, N, generator=generator, dtype=torch.float64)
    y = x @ torch.ones(N, dtype=torch.float64)
    y += sigma * torch.randn(pool, generator=generator, dtype=torch.float64)

    def loss(model, number):
        rows = torch.randint(pool, (size,), generator=torch.Generator().manual_seed(number))
        return F.mse_loss(model(x[rows]), y[rows])

    return loss, lambda model: float(F.mse_loss(model(x), y).detach())


@pytest.mark.parametrize("slice", [0, 3])
def test_small_batches_are_judged_by_the_next(slice):
    loss, whole = batches(sigma=1.0)
    found = {}
    for judge in ("same", "next"):
        model, losses = Point(torch.zeros(N)), []
        engine = train(
            NewtonCG(judge=judge, slice=slice), model, loss, 40, lambda _, m=model, at=losses: at.append(whole(m))
        )
        found[judge] = engine.scalars()["curv/damping"], sum(losses[-20:]) / 20
    assert found["same"][0] < 1e-6
    assert found["next"][0] > 1e-2
    assert found["next"][1] < 0.7 * found["same"][1]


def test_the_same_batch_costs_no_second_loss():
    x, y = squares()
    for judge in ("same", "next"):
        method = NewtonCG(judge=judge, slice=1, damping=1e6)  # Every step is taken as it is.
        assert train(method, Point(torch.zeros(N)), quadratic(x, y), 6).memory.counts.forwards == 2 + 6 * 4
    loss, _ = batches(1.0)
    for judge, more in (("same", 0), ("next", 5)):
        method = NewtonCG(judge=judge, slice=1, damping=1e6)
        assert train(method, Point(torch.zeros(N)), loss, 6).memory.counts.forwards == 2 + 6 * 4 + more


class Random(nn.Module):
    """With random numbers, and with statistics of the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 3)
        ).double()

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("of", ["gauss_newton", "products"])
def test_dropout_and_batch_statistics_are_those_of_one_function(of):
    def ask(step):
        u, v = step.space.normal(0), step.space.normal(1)
        Bu, Bv = getattr(step.oracle, of)(u[None])[0], getattr(step.oracle, of)(v[None])[0]
        return float(u @ Bv), float(v @ Bu), Bu, Bv, step.oracle.loss(), step.oracle.loss()

    one, other, _, _, loss, again = asked("mse", ask, net=Random())
    assert one == pytest.approx(other, rel=1e-4)
    assert loss == again


@pytest.mark.parametrize("slice", [0, 2])
def test_running_statistics_are_of_the_training_alone(slice):
    nets = Random(), Random()
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nets[0](x)
    train(NewtonCG(slice=slice), nets[1], lambda m, _: F.mse_loss(m(x), x), 1)
    for one, other in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        assert torch.equal(one, other)


def test_what_is_not_finite_moves_nothing():
    x, y = squares()
    model, method = Point(torch.ones(N)), NewtonCG(curvature="hessian")
    calls = []

    def loss(model, number):
        calls.append(number)
        value = F.mse_loss(model(x), y)
        # The training's own gradient is good, and every one beside it is not.
        return value if torch.equal(model.at.detach(), torch.ones(N, dtype=torch.float64)) else value * float("nan")

    engine = train(method, model, loss, 1)
    assert engine.scalars()["curv/failed"] == 1
    assert engine.scalars()["curv/damping"] == 1.5
    assert torch.equal(model.at.detach(), torch.ones(N, dtype=torch.float64))
    assert all(value.isfinite().all() for value in engine.state.vectors.values())


def scheduled(method, x, y, steps, factor):
    """Steps on a quadratic at a share of the learning rate; the weights and what is logged after each."""
    model, found = Point(torch.zeros(N)), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine = attach(model, optimizer, method)
    torch.optim.lr_scheduler.ConstantLR(optimizer, factor, 100)

    def closure():
        optimizer.zero_grad()
        loss = quadratic(x, y)(model, 0)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        found.append((model.at.detach().clone(), engine.scalars()))
    engine.detach()
    return found


@pytest.mark.parametrize("slice", [0, 50])
def test_a_schedule_shortens_the_step(slice):
    x, y = squares()
    (first, _), (_, scalars) = scheduled(NewtonCG(damping=0.0, slice=slice), x, y, 2, 0.25)
    torch.testing.assert_close(first, 0.25 * torch.linalg.lstsq(x, y).solution, rtol=0, atol=1e-4)
    # The change that the model has foretold for a quarter of the step.
    assert scalars["curv/reduction_ratio"] == pytest.approx(1.0, abs=1e-4)


def test_a_slice_that_is_shortened_foretells_the_gradient_where_it_ends():
    x, y = squares()
    found = scheduled(NewtonCG(slice=2), x, y, 3, 0.25)
    assert [scalars["curv/age"] for _, scalars in found] == [1, 2, 3]
    assert all(scalars["curv/drift"] < 1e-6 for _, scalars in found)


def test_a_start_that_solves_it_is_taken():
    x, y = squares()
    # Two curvatures, and so a solve to rounding.
    x = torch.linalg.qr(x).Q * (1.0 + torch.arange(N) % 2)
    found = scheduled(NewtonCG(damping=0.0, decay=0.5), x, y, 2, 0.5)
    assert found[1][1]["curv/cg_iterations"] == 0
    assert found[1][1]["curv/step_length"] == 0.5
    torch.testing.assert_close(found[1][0], 0.75 * torch.linalg.lstsq(x, y).solution, rtol=0, atol=1e-4)


def test_arguments_and_bases_are_checked():
    for wrong, message in (
        ({"curvature": "fisher"}, "curvature must be one of"),
        ({"damping": -1.0}, r"damping must be a number in \[0"),
        ({"iterations": 0}, "iterations must be an integer"),
        ({"iterations": 4, "slice": 5}, r"slice must be an integer in \[0, 4\]"),
        ({"decay": 2.0}, "decay must be a number"),
        ({"judge": "last"}, "judge must be one of"),
    ):
        with pytest.raises(ConfigError, match=message):
            NewtonCG(**wrong)
    model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="NewtonCG finds step size and momentum itself"):
        attach(model, torch.optim.Adam(model.parameters()), NewtonCG())
    assert copy.deepcopy(NewtonCG()) == NewtonCG()


def test_damping_that_has_shrunk_to_nothing_can_grow_again():
    x, y = squares()
    found = []

    def look(engine):
        found.append(float(engine.state.numbers["damping"]))
        engine.state.numbers["damping"].fill_(1e-300)

    train(NewtonCG(judge="same"), Point(torch.zeros(N)), quadratic(x, y), 3, look)
    assert found[1:] == [1e-12, 1e-12]


def test_a_direction_that_bends_down_is_no_place_to_begin():
    def hill(model, _):
        return -model().square().sum() / 2 + model().pow(4).sum() / 8

    engine = train(NewtonCG(curvature="hessian", damping=0.1), Point(torch.full((N,), 0.1)), hill, 1)
    assert engine.scalars()["curv/negative"] == 1
    assert engine.scalars()["curv/damping"] == pytest.approx(0.15)
    assert not bool(engine.state.vectors["last"].any())


@pytest.mark.parametrize("how", [pytest.param("compiled", marks=pytest.mark.slow), "checkpointed"])
def test_a_graph_that_bears_one_pass_is_made_again(how):
    ends = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
        model = net if not wrapped else torch.compile(net, backend="aot_eager") if how == "compiled" else Kept(net)
        x, labels = torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3
        train(NewtonCG(iterations=4), net, lambda _, __, m=model, x=x, y=labels: F.cross_entropy(m(x), y), 3)
        ends.append([p.detach().clone() for p in net.parameters()])
    for plain, other in zip(*ends, strict=True):
        torch.testing.assert_close(other, plain, rtol=0, atol=1e-5)


class Kept(nn.Module):
    """A reentrant checkpoint."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return checkpoint(self.net, x.requires_grad_(), use_reentrant=True)
