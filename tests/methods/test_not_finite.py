"""Losses, gradients and products that are not finite inside a method's update are data: no NaN, and nothing unsaid."""

import math

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

from lightning_so import (
    OGR,
    AdaHessian,
    AutoStep,
    FewDirections,
    LevenbergMarquardt,
    NewtonCG,
    Nystrom,
    QuadraticModel,
    SaddleFreeKrylov,
    Sophia,
    attach,
)
from lightning_so.linalg.backtrack import armijo, backtracked
from lightning_so.linalg.cg import Iterate
from tests.support.daily import one_in

SGD, ADAM = (torch.optim.SGD, {"lr": 0.1}), (torch.optim.AdamW, {"lr": 1e-2})
METHODS = [
    (OGR(curvature="same-batch", every=2), SGD),
    (FewDirections(k=2, every=2), SGD),
    (AutoStep(every=2), ADAM),
    (QuadraticModel(adapt=2), SGD),
    (NewtonCG(damping=0.1, iterations=3), SGD),
    (NewtonCG(damping=0.1, iterations=3, curvature="hessian"), SGD),
    (NewtonCG(damping=0.1, iterations=3, slice=2), SGD),
    (SaddleFreeKrylov(m=3), SGD),
    (LevenbergMarquardt(), SGD),
    (Nystrom(rank=3, every=2), SGD),
    (AdaHessian(), ADAM),
    (Sophia(every=2), ADAM),
    (Sophia(every=2, curvature="gauss-newton"), ADAM),
]
IDS = [str(method) for method, _ in METHODS]
#: What of an evaluation is broken.
BROKEN = ("loss", "infinite", "bottomless", "predictions", "gradient")


class Walk:
    """A few steps of a small least-squares problem; an evaluation is broken, on one rank, or all but the training's."""

    def __init__(self, method, base, at=None, how="loss", rank=0, product="difference"):
        torch.manual_seed(0)
        self.net, mine = torch.nn.Linear(4, 2), dist.get_rank() if dist.is_initialized() else 0
        x, turn = torch.randn(16, 4), torch.randn(4, 2)
        y = x @ turn + 0.1 * torch.randn(16, 2)
        if dist.is_initialized():
            x, y = x[mine::2], y[mine::2]
        self.x, self.y, self.calls = x, y, 0
        self.optimizer = base[0](self.net.parameters(), **base[1])
        model = DDP(self.net) if dist.is_initialized() else self.net
        self.engine = attach(model, self.optimizer, method, product=product)

        self.began, self.broken = [], at

        def closure():
            self.calls += 1
            self.optimizer.zero_grad()
            out, broken = model(self.x), rank == mine and self.breaks()
            if broken and how == "predictions":
                out = out * math.inf
            if broken and how == "gradient":
                out.register_hook(lambda grad: grad * math.nan)
            loss = F.mse_loss(out, self.y)
            if broken and how in ("loss", "infinite"):
                loss = loss * (math.nan if how == "loss" else math.inf)
            if broken and how == "bottomless":
                loss = loss - math.inf  # Its gradient is finite.
            loss.backward()
            return loss

        self.closure = closure

    def step(self):
        self.began.append(self.calls + 1)
        self.optimizer.step(self.closure)
        return self

    def breaks(self):
        return self.calls not in self.began if self.broken == "beside" else self.calls == self.broken

    @property
    def weights(self):
        return torch.cat([param.detach().flatten().clone() for param in self.net.parameters()])

    @property
    def loss(self):
        with torch.no_grad():
            return float(F.mse_loss(self.net(self.x), self.y))

    @property
    def counted(self):
        counts, numbers = self.engine.memory.counts, self.engine.state.numbers
        return counts.skipped + counts.refused + counts.unusable + int(numbers["failed"])

    @property
    def finite(self):
        state = self.engine.state
        held = [*state.vectors.values(), *(v for name, v in state.numbers.items() if name != "longest")]
        return all(bool(tensor.double().isfinite().all()) for tensor in (self.weights, *held))


def walked(*arguments, steps=3, **named):
    walk = Walk(*arguments, **named)
    for _ in range(steps):
        walk.step()
    return walk


EVERY_DAY = ("bottomless",)
SWEPT = [how if how in EVERY_DAY else pytest.param(how, marks=pytest.mark.slow) for how in BROKEN]


@pytest.mark.parametrize("how", SWEPT)
@pytest.mark.parametrize(("method", "base"), METHODS, ids=IDS)
def test_whichever_evaluation_is_broken_nothing_is_poisoned_and_what_changes_is_counted(method, base, how):
    right = walked(method, base)
    assert right.counted == 0
    seen = 0
    for at in range(1, right.calls + 1):
        walk = walked(method, base, at, how)
        assert walk.finite, at
        assert walk.counted or torch.equal(walk.weights, right.weights), at
        seen += walk.counted > 0
    assert seen >= 3 or how == "bottomless"


@pytest.mark.parametrize(("number", "broken"), [(4, 1), (6, 1), (7, 4), (8, 1)])
def test_methods_that_make_the_step_withhold_it_and_go_on(number, broken):
    method, base = METHODS[number]
    right = walked(method, base, steps=8)
    # The loss at the second step's weights, or its residuals.
    walk = Walk(method, base, at=right.began[1] + broken, how="infinite")
    before = walk.step().weights
    assert torch.equal(walk.step().weights, before)
    assert int(walk.engine.state.numbers["failed"]) == 1
    for _ in range(7):
        walk.step()
    assert walk.loss == pytest.approx(right.loss, rel=1e-2)


@pytest.mark.parametrize("how", ["infinite", "bottomless"])
@pytest.mark.parametrize(("method", "base"), METHODS, ids=IDS)
def test_where_nothing_beside_the_gradient_is_finite_no_step_is_guessed(method, base, how):
    walk = Walk(method, base, "beside", how)
    before = walk.weights
    for _ in range(2):
        walk.step()
        assert walk.finite
    if how == "infinite":
        assert walk.counted
        stands = method.owns == "step" or isinstance(method, AutoStep | AdaHessian)
        assert torch.equal(walk.weights, before) is stands


def test_a_batch_whose_loss_is_not_finite_does_not_judge_the_damping():
    method, base = METHODS[4]
    walk = walked(method, base, steps=1)
    walk.y = walk.y + 1.0  # Another batch: the damping is judged by it, at both ends of the step.
    walk.broken = walk.calls + 3
    damping, rate = (float(walk.engine.state.numbers[name]) for name in ("damping", "ratio"))
    walk.step()
    assert walk.finite
    assert float(walk.engine.state.numbers["damping"]) == damping
    assert float(walk.engine.state.numbers["ratio"]) == rate


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_line_has_no_end_where_its_loss_is_not_finite(broken):
    assert armijo(lambda a: broken if a == 1 else (2 * a - 1) ** 2, 1.0, -4.0, 20)[0] == 0.8
    kept = [Iterate(number, torch.tensor(float(number)), 0.0) for number in range(3)]
    assert backtracked(kept, lambda x: broken if float(x) == 1 else 2.0 - float(x))[0].iteration == 2


@pytest.mark.parametrize("product", ["difference", "exact"])
def test_how_products_are_taken_is_learnt_from_finite_gradients_alone(product):
    method, base = METHODS[1]
    right = walked(method, base, steps=2, product=product)
    walk = walked(method, base, right.began[1] + 1, "loss", steps=2, product=product)
    assert walk.engine.memory.examined is None
    assert walk.engine.memory.counts.unusable == 1
    for _ in range(2):
        walk.step()
    assert walk.engine.memory.examined is not None
    assert walk.engine.memory.examined.central is right.engine.memory.examined.central is False
    assert walk.engine.memory.counts.unusable == 1


def test_the_same_step_twice_is_compared_by_finite_losses_alone():
    method, base = METHODS[8]
    walk = walked(method, base, 2, "infinite", steps=1)
    assert not walk.engine.memory.repeats
    assert walk.step().engine.memory.repeats


def test_before_a_product_adahessian_stands_still_and_sophia_takes_the_sign():
    for number, moved in ((10, False), (11, True)):
        walk = Walk(*METHODS[number], at=5)
        before = walk.weights
        apart = walk.step().weights - before
        assert walk.counted == 1
        assert bool(apart.any()) is moved
        assert float(apart.abs().max()) <= 1.1e-2


class Broken:
    """Answers what is not finite."""

    def __init__(self, owns):
        self.owns = owns

    def refuse(self, space, groups):
        return None

    def init(self, space):
        return OGR(k=1).init(space)

    def probes(self, number):
        return False

    def update(self, state, step):
        return step.update * math.nan

    def scalars(self, state):
        return {}


@pytest.mark.parametrize(("owns", "moved"), [("nothing", True), ("moments", False), ("step", False)])
def test_an_answer_that_is_not_finite_leaves_the_step_of_the_base_where_that_is_one_of_the_method(owns, moved):
    walk = Walk(Broken(owns), SGD)
    before = walk.weights
    after = walk.step().weights
    assert bool(after.isfinite().all())
    assert torch.equal(before, after) is not moved
    assert walk.engine.scalars()["curv/skipped_steps"] == 1


# ---------------------------------------------------------------- over ranks


def end(number, at, how):
    """What a rank has at the end, where an evaluation of rank 1 is broken."""
    walk = walked(*METHODS[number], at, how, rank=1)
    return walk.weights, walk.counted, walk.calls, walk.finite


@pytest.mark.parametrize("number", one_in(4, range(len(METHODS))), ids=IDS)
def test_what_is_broken_on_one_rank_is_broken_on_all(two, number):
    for at, how in ((3, "loss"), (4, "gradient"), (5, "predictions")):
        mine, other = two.run(end, number, at, how)
        assert torch.equal(mine[0], other[0])
        assert mine[1:] == other[1:]
        assert mine[3]
