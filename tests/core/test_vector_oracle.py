"""What a whole-vector method can ask of a step's batch, against dense matrices; the same on any number of ranks."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F

from lightning_so import KFAC, AutoStep, ConfigError, MatrixFree, attach
from lightning_so.contract.vector_method import Owned, VectorState
from tests.support import trainings

SAMPLES = 6


@dataclass(frozen=True)
class Asking:
    """Leaves every step to the base, and asks once."""

    ask: Any = None
    owns: ClassVar[Owned] = "nothing"
    found: list = field(default_factory=list, repr=False)

    def refuse(self, space, groups):
        return None

    def init(self, space):
        return VectorState()

    def probes(self, number):
        return True

    def update(self, state, step):
        self.found.append(self.ask(step))

    def scalars(self, state):
        return {}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def data():
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(SAMPLES, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, y, torch.randint(3, (SAMPLES,), generator=generator)


LOSSES = {
    "mse": lambda f, y, _: F.mse_loss(f, y),
    "squares": lambda f, y, _: 0.3 * (f - y).square().sum(1).mean() + ((f * f).mean() / 2),
    "cross-entropy": lambda f, _, c: F.cross_entropy(f, c, label_smoothing=0.0),
    "weighted": lambda f, _, c: F.cross_entropy(f, c, torch.tensor([1.0, 2.0, 0.5]).to(f), ignore_index=2),
    "logistic": lambda f, y, _: F.binary_cross_entropy_with_logits(f, y.sigmoid(), reduction="none").sum(1).mean(),
    "moving target": lambda f, *_: F.mse_loss(f[:, :2], f[:, 1:]),
    "mixed": lambda f, y, c: F.cross_entropy(f, c) + 0.1 * F.mse_loss(f[:, :2], y[:, :2]),
}


def asked(name, ask, net=None, ranks=1, product="difference"):
    """What a method is answered in a plain loop, this rank's part of the samples."""
    loss = LOSSES[name]
    net = network() if net is None else net
    model = nn.parallel.DistributedDataParallel(net) if ranks > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    method = Asking(ask)
    engine = attach(model, optimizer, method, product=product)
    part = [t[dist.get_rank() :: ranks] if ranks > 1 else t for t in data()]

    def closure():
        optimizer.zero_grad()
        value = loss(model(part[0]), *part[1:])
        value.backward()
        return value

    optimizer.step(closure)
    engine.detach()
    return method.found[0]


def dense(loss):
    """Loss, Gauss-Newton matrix and Jacobian of the outputs, by torch.func, at the weights of `network`."""
    net = network()
    x, *targets = data()
    names, shapes = zip(*((n, p.shape) for n, p in net.named_parameters()), strict=True)
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])

    def outputs(w):
        parts = w.split([shape.numel() for shape in shapes])
        values = {n: part.view(shape) for n, part, shape in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(net, values, (x,))

    f = outputs(flat)
    J = torch.func.jacrev(outputs)(flat).flatten(0, 1)
    H = torch.func.hessian(lambda f: loss(f, *targets))(f).reshape(f.numel(), f.numel())
    return loss(f, *targets), J.mT @ H @ J, outputs, flat


def vectors(step):
    return torch.stack([step.space.normal(0), step.space.normal(1)])


@pytest.mark.parametrize("loss", LOSSES)
def test_gauss_newton_products_are_those_of_the_dense_matrix(loss):
    V, found = asked(loss, lambda step: (vectors(step), step.oracle.gauss_newton(vectors(step))))
    _, G, *_ = dense(LOSSES[loss])
    torch.testing.assert_close(found, V @ G, rtol=2e-5, atol=1e-6 * float(G.norm()))
    assert float(torch.linalg.eigvalsh(G)[0]) > -1e-12


def test_the_label_of_a_logistic_loss_is_no_prediction():
    def loss(f, held):
        return F.binary_cross_entropy_with_logits(f[:, :2], held[:, 1:].sigmoid())

    LOSSES["own label"] = lambda f, *_: loss(f, f)
    V, found = asked("own label", lambda step: (vectors(step), step.oracle.gauss_newton(vectors(step))))
    _, G, *_ = dense(lambda f, *_: loss(f, f.detach()))
    torch.testing.assert_close(found, V @ G, rtol=2e-5, atol=1e-6 * float(G.norm()))
    del LOSSES["own label"]


def test_the_loss_beside_the_weights():
    loss = LOSSES["mse"]
    here, there, v = asked(
        "mse", lambda s: (s.oracle.loss(), s.oracle.loss(0.1 * s.space.normal(0)), s.space.normal(0))
    )
    value, _, outputs, flat = dense(loss)
    assert here == pytest.approx(float(value), rel=1e-12)
    assert there == pytest.approx(float(loss(outputs(flat + 0.1 * v), *data()[1:])), rel=1e-12)


@pytest.mark.parametrize("loss", ["mse", "squares"])
def test_residuals_are_the_loss_and_their_jacobian_its_gradient(loss):
    found, gradient = asked(loss, lambda step: (step.oracle.residuals(), step.gradient.clone()))
    value, G, *_ = dense(LOSSES[loss])
    assert float(found.values.square().sum() / 2) == pytest.approx(float(value), rel=1e-12)
    torch.testing.assert_close(found.jacobian.mT @ found.values, gradient, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.jacobian.mT @ found.jacobian, G, rtol=1e-10, atol=1e-12)
    assert found.by_row == len(found.values)


def everything(step):
    V = vectors(step)
    found = step.oracle.residuals()
    first, second = step.oracle.gauss_newton(V), step.oracle.products(V)
    gram = found.jacobian.mT @ found.jacobian
    return first, second, torch.tensor(step.oracle.loss(0.1 * V[0])), gram, found.jacobian.mT @ found.values


def test_ranks_give_the_answers_of_one_process(two):
    expected = asked("mse", everything)
    for found in two.run(asked, "mse", everything, None, 2):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def pieces(strategy):
    """Products and the loss in a Trainer, on whatever the strategy makes of the parameters."""

    def ask(step):
        forms = [step.space.dot(v, step.oracle.gauss_newton(v[None])[0]) for v in vectors(step)]
        return [*forms, step.oracle.loss(0.01 * vectors(step)[0]), step.oracle.loss()]

    method = Asking(ask)
    callback = MatrixFree(method, verbose=False)
    trainings.train(strategy, None, (torch.optim.SGD, {"lr": 0.1}), 2, dtype=torch.float64, callbacks=[callback])
    return callback.method.found


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp", "fsdp1"])
def test_pieces_give_the_answers_of_one_process(two, four, strategy):
    expected = pieces("one")
    for found in (four if strategy == "hsdp" else two).run(pieces, strategy):
        assert found[0] == pytest.approx(expected[0], rel=1e-6)
        assert found[1] == pytest.approx(expected[1], rel=1e-6)


def products_in(precision):
    def ask(step):
        return [float(step.space.dot(v, step.oracle.gauss_newton(v[None])[0])) for v in (*vectors(step), step.gradient)]

    method, base = Asking(ask), (torch.optim.SGD, {"lr": 0.1})
    trainings.train("one", None, base, 3, precision=precision, callbacks=[MatrixFree(method, verbose=False)])
    return method.found


def test_half_precision_gives_products_too():
    for found, expected in zip(products_in("bf16-mixed"), products_in("32-true"), strict=True):
        assert found == pytest.approx(expected, rel=0.08)


def moved_to_and_fro(how):
    """The loss beside the weights, at them, and the next step's, of a network whose root waits for a backward pass."""
    net = network()
    if how == "fsdp2":
        fully_shard(net)
    flat = {"use_orig_params": True, "device_id": torch.device("cpu")}
    model = FullyShardedDataParallel(net, **flat) if how == "fsdp1" else net
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = Asking(lambda step: [step.oracle.loss(d) for d in (0.1 * step.space.normal(0), None)])
    engine = attach(model, optimizer, method)

    def closure():
        optimizer.zero_grad()
        value = LOSSES["mse"](model(data()[0]), *data()[1:])
        value.backward()
        return value

    losses = [optimizer.step(closure).item() for _ in range(2)]
    engine.detach()
    return method.found, losses


@pytest.mark.parametrize("how", ["fsdp2", pytest.param("fsdp1", marks=pytest.mark.slow)])
def test_weights_of_a_pass_without_a_gradient_are_not_kept(two, how):
    expected, losses = moved_to_and_fro("one")
    for found, theirs in two.run(moved_to_and_fro, how):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-9, atol=0)
        assert theirs == pytest.approx(losses, rel=1e-9)


# ------------------------------------------------------------------ products by double backward
def rough():
    """A net with ReLU, of which differences of gradients see jumps that are no curvature."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 3)).double()


def hessian(net, loss):
    x, *targets = data()
    params = list(net.parameters())
    grads = torch.autograd.grad(loss(net(x), *targets), params, create_graph=True)
    g = torch.cat([grad.flatten() for grad in grads])
    rows = [torch.autograd.grad(number, params, retain_graph=True, allow_unused=True) for number in g]
    return torch.stack(
        [torch.cat([(h if h is not None else 0 * p).flatten() for h, p in zip(r, params)]) for r in rows]
    )


def products(step):
    V = vectors(step)
    return V, step.oracle.products(V), step.oracle.forms(V, V), step.oracle.products(V[:1])


@pytest.mark.parametrize("product", ["exact", "auto"])
def test_exact_products_are_those_of_the_dense_hessian(product):
    V, found, forms, again = asked("cross-entropy", products, rough(), product=product)
    H = hessian(rough(), LOSSES["cross-entropy"])
    torch.testing.assert_close(found, V @ H, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(forms, V @ H @ V.mT, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(again, found[:1], rtol=0, atol=0)


def ranked_products():
    return asked("cross-entropy", products, rough(), ranks=dist.get_world_size(), product="exact")


def test_exact_products_are_means_over_ranks(two):
    H = hessian(rough(), LOSSES["cross-entropy"])
    for V, found, forms, again in two.run(ranked_products):
        torch.testing.assert_close(found, V @ H, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(forms, V @ H @ V.mT, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(again, found[:1], rtol=0, atol=1e-15)


class Once(torch.autograd.Function):
    """A kernel whose backward pass has none."""

    @staticmethod
    def forward(ctx: Any, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g):
        return 2 * g


class Looped:
    """A loop whose loss is differentiable once or twice; some steps, and what is told."""

    def __init__(self, product, once=True, method=None):
        self.net, self.once, self.told = network(), once, []
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.method = Asking(lambda step: step.oracle.products(vectors(step))) if method is None else method
        self.engine = attach(self.net, self.optimizer, self.method, product=product)
        self.engine.memory.tell = self.told.append

    def train(self, steps=1):
        def closure():
            self.optimizer.zero_grad()
            f = self.net(data()[0])
            loss = LOSSES["cross-entropy"](Once.apply(f) if self.once else 2 * f, None, data()[2])
            loss.backward()
            return loss

        for _ in range(steps):
            self.optimizer.step(closure)
        return self


def test_where_there_is_no_double_backward_it_is_said_by_name():
    with pytest.raises(ConfigError, match=r'Asking: there is no double backward here .*Use product="difference"'):
        Looped("exact").train()
    loop = Looped("auto").train(2)
    (told,) = loop.told
    assert "by forward differences of gradients" in str(told)
    assert "there is no double backward here" in str(told)
    for found, expected in zip(loop.method.found, Looped("difference").train(2).method.found, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_how_products_are_taken_is_saved_and_asked_anew_where_it_is_another():
    for product, once, told in (("auto", False, 0), ("auto", True, 0), ("exact", False, 0), ("difference", False, 1)):
        first = Looped(product if told == 0 else "exact", once).train()
        again = Looped(product, once, first.method)
        again.engine.load_state_dict(first.engine.state_dict())
        again.train()
        assert len(again.told) == told
        assert again.engine.memory.examined.exact == (not once and product != "difference")
    # A probe is at the first step alone: a gradient, a graph and two products, then a graph and two products.
    assert Looped("exact", False).train(1).engine.memory.counts.evaluations == 1 + 3 + 4
    assert Looped("exact", False).train(3).engine.memory.counts.evaluations == 3 + 3 * (1 + 4)


def test_products_are_asked_for_by_name():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"attach\(product='double'\): product must be one of \['auto', 'exact'"):
        attach(net, optimizer, Asking(), product="double")
    with pytest.raises(ConfigError, match=r"MatrixFree\(product='double'\)"):
        MatrixFree(AutoStep(), product="double")
    with pytest.raises(ConfigError, match="KFAC takes no products"):
        attach(net, optimizer, KFAC(), product="exact")


def sharded(ask, how):
    """What a method is answered on pieces whose root stays gathered after a forward pass, and in one process."""
    net = network()
    optimizer = torch.optim.SGD((fully_shard(net) if how == "fsdp2" else net).parameters(), lr=0.1)
    method = Asking(ask)
    engine = attach(net, optimizer, method, product="auto")
    part = [t[dist.get_rank() :: 2] if how == "fsdp2" else t for t in data()]

    def closure():
        optimizer.zero_grad()
        loss = LOSSES["cross-entropy"](net(part[0]), *part[1:])
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert how != "fsdp2" or "a second derivative reaches no piece" in str(engine.memory.examined)
    return method.found


def around(step):
    d = 0.3 * step.space.normal(0)
    G = step.oracle.gauss_newton(d[None])[0]
    step.oracle.products(d[None])
    return step.oracle.loss(), step.oracle.loss(d), step.oracle.loss(-d), step.space.dot(d, G)


def test_passes_without_a_gradient_see_the_weights_where_a_root_stays_gathered(two):
    expected = sharded(around, "one")
    for found in two.run(sharded, around, "fsdp2"):
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-6)
