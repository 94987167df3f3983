"""Taps: checkpoints, in-place activations, several uses of a layer, samples of rows, and layers that are left out."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_so import KFAC, attach
from lightning_so.core.statistics.layer_call import REMEMBERED
from tests.layers.test_layers import DOUBLE, randn, spied, with_one
from tests.methods.test_kfac import close, factors, linears, matrix, sgd, step
from tests.support.daily import one_in


class Trunk(nn.Module):
    """A sequence model whose parts can be checkpointed: embed (N, T), two blocks, a pool and a head."""

    def __init__(self, parts=(), reentrant=None, shared=False):
        super().__init__()
        self.parts, self.reentrant = parts, reentrant
        self.embed = nn.Linear(3, 4, **DOUBLE)
        self.one = nn.Sequential(nn.Linear(4, 4, **DOUBLE), nn.Tanh())
        self.two = self.one if shared else nn.Sequential(nn.Linear(4, 4, **DOUBLE), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(4, 4, **DOUBLE), nn.Tanh(), nn.Linear(4, 2, **DOUBLE))

    def forward(self, x):
        def run(name, h):
            part = getattr(self, name)
            return checkpoint(part, h, use_reentrant=self.reentrant) if name in self.parts else part(h)

        return run("head", run("two", run("one", self.embed(x))).mean(1))


def three_steps(model, cls=torch.optim.SGD):
    optimizer = cls(model.parameters(), lr=0.05)
    engine = attach(model, optimizer, KFAC(fisher="empirical", damping=0.01, period=1))
    for t in range(3):
        step(engine, model(randn(6, 5, 3, seed=t)).square().sum(1).mean())
    return [matrix(layer) for layer in linears(model).values()], [factors(engine, name) for name in linears(model)]


def same(one, other):
    for a, b in zip(one, other):
        for x, y in zip(a, b):
            for X, Y in zip(x, y):
                close(X, Y)


HIDDEN, WITH_HEAD = [("one",), ("one", "two")], [("head",), ("one", "two", "head")]


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
@pytest.mark.parametrize(
    ("parts", "reentrant"),
    one_in(3, [(parts, reentrant) for parts in HIDDEN + WITH_HEAD for reentrant in (False, True)]),
)
def test_a_checkpointed_part_changes_nothing(parts, reentrant, shared, cls):
    plain, model = Trunk(shared=shared), Trunk(parts, reentrant, shared)
    model.load_state_dict(plain.state_dict())
    same(three_steps(model, cls), three_steps(plain, cls))


@pytest.mark.parametrize(
    ("kind", "bias"),
    [("rows", True), ("rows", False), ("image", True), ("sequence", False), ("sequence", True)],
)
def test_an_activation_in_place_changes_nothing(kind, bias):
    if kind == "image":
        layer, x = nn.Conv2d(3, 4, 3, **DOUBLE), randn(6, 3, 5, 5)
    else:
        layer, x = nn.Linear(3, 4, bias=bias, **DOUBLE), randn(*((6, 3) if kind == "rows" else (6, 5, 3)))
    plain = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(layer(x)[0].numel(), 2, **DOUBLE))
    model = copy.deepcopy(plain)
    model[1] = nn.ReLU(inplace=True)
    engines = [sgd(m, KFAC(fisher="empirical", damping=0.01, period=1), lr=0.05) for m in (plain, model)]
    for engine in engines:
        for _ in range(3):
            step(engine, engine.host.model(x).square().sum(1).mean())
    for name in ("0.weight", "3.weight"):
        for found, expected in zip(factors(engines[1], name), factors(engines[0], name)):
            close(found, expected)
    for found, expected in zip(model.parameters(), plain.parameters()):
        close(found.detach(), expected.detach())


def test_two_calls_of_a_layer_are_two_positions():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(3, 3, **DOUBLE), nn.Linear(3, 2, **DOUBLE)

        def forward(self, x):
            return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))

    model, x, N = Twice(), randn(5, 3), 5
    calls = spied(model, ["layer"], lambda m: m(x).square().sum())["layer"]
    engine = sgd(model, KFAC(fisher="empirical", period=1))
    step(engine, model(x).square().sum(1).mean())
    A, G = factors(engine, "layer.weight")
    assert len(calls) == 2
    close(A[0], sum(with_one(a).mT @ with_one(a) for a, _ in calls) / (2 * N))
    close(G[0], sum(g.mT @ g for _, g in calls) / N)


def test_gradients_that_are_not_of_the_loss_are_no_statistics():
    plain, x = nn.Sequential(nn.Linear(3, 4, **DOUBLE), nn.Tanh(), nn.Linear(4, 2, **DOUBLE)), randn(6, 3)
    model = copy.deepcopy(plain)
    engines = [sgd(m, KFAC(fisher="empirical", damping=0.01, period=1), lr=0.05) for m in (plain, model)]
    for engine in engines:
        for _ in range(3):
            engine.optimizer.zero_grad()
            loss = engine.host.model(x).square().sum(1).mean()
            if engine.host.model is model:
                torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            loss.backward()
            engine.optimizer.step()
    for name in linears(model):
        for found, expected in zip(factors(engines[1], name), factors(engines[0], name)):
            close(found, expected)


def test_a_backward_pass_that_failed_leaves_no_statistics():
    plain, x = nn.Sequential(nn.Linear(3, 4, **DOUBLE), nn.Tanh(), nn.Linear(4, 2, **DOUBLE)), randn(6, 3)
    model = copy.deepcopy(plain)

    def fail(_):
        raise MemoryError

    engines = [sgd(m, KFAC(fisher="empirical", damping=0.01, period=1), lr=0.05) for m in (plain, model)]
    h = model[:2](randn(8, 3))
    h.register_hook(fail)
    with pytest.raises(MemoryError):
        model[2](h).square().sum(1).mean().backward()  # of 8 samples; half of them comes next
    for engine in engines:
        step(engine, engine.host.model(x).square().sum(1).mean())
    for name in linears(model):
        for found, expected in zip(factors(engines[1], name), factors(engines[0], name)):
            close(found, expected)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_step_that_was_skipped_leaves_no_statistics(set_to_none):
    plain = nn.Sequential(nn.Linear(3, 4, **DOUBLE), nn.Tanh(), nn.Linear(4, 2, **DOUBLE))
    model = copy.deepcopy(plain)
    engines = [sgd(m, KFAC(fisher="empirical", damping=0.01, period=1), lr=0.05) for m in (plain, model)]
    for engine in engines:
        for t in range(4):
            x = randn(6, 3, seed=t) * (torch.inf if t == 1 else 1.0)
            if t == 1 and engine.host.model is plain:
                continue
            engine.optimizer.zero_grad(set_to_none=set_to_none)
            engine.host.model(x).square().sum(1).mean().backward()
            engine.optimizer.step()
    assert engines[1].report.skipped == 1
    for name in linears(model):
        for found, expected in zip(factors(engines[1], name), factors(engines[0], name)):
            close(found, expected)


def test_forward_passes_that_never_go_backward_are_forgotten():
    model = nn.Sequential(nn.Linear(3, 4, **DOUBLE), nn.Tanh(), nn.Linear(4, 2, **DOUBLE))
    engine = sgd(model, KFAC(fisher="empirical", period=1))
    for _ in range(100):
        model(randn(6, 3))
    assert len(engine.recorders[0].seen.calls) <= 2 * REMEMBERED
    step(engine, model(randn(6, 3)).square().sum(1).mean())
    assert engine.report.preconditioned == 2


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_a_sample_of_the_rows_builds_the_factors(sharing):
    x, method = randn(10, 4, 3), KFAC(fisher="empirical", period=1, rows=8, sharing=sharing)
    model = nn.Sequential(nn.Linear(3, 4, **DOUBLE), nn.Tanh(), nn.Linear(4, 2, **DOUBLE))
    (_, g), *_ = spied(model, ["0"], lambda m: m(x).square().sum())["0"]
    engine = sgd(model, method)
    step(engine, model(x).square().sum(2).mean() if sharing == "expand" else model(x).square().sum((1, 2)).mean())
    A, G = factors(engine, "0.weight")
    options = []  # 40 positions: every fifth position or sample is kept, and any may be the first
    for first in range(5):
        if sharing == "expand":
            a, h = with_one(x).flatten(0, 1)[first::5], g.flatten(0, 1)[first::5]
        else:
            a, h = with_one(x)[first::5].mean(1), g[first::5].sum(1)
        options.append((a.mT @ a / len(a), h.mT @ h / len(h)))
    matches = [torch.allclose(A[0], a, rtol=1e-10) and torch.allclose(G[0], h, rtol=1e-10) for a, h in options]
    assert sum(matches) == 1


# ---------------------------------------------------------------- layers that are left out


class Odd(nn.Module):
    """Everything that has no rows, beside two layers that have."""

    def __init__(self):
        super().__init__()
        self.embed, self.first = nn.Embedding(5, 4, **DOUBLE), nn.Linear(4, 4, **DOUBLE)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **DOUBLE)
        self.norm, self.frozen = nn.LayerNorm(4, **DOUBLE), nn.Linear(4, 4, **DOUBLE).requires_grad_(False)
        self.unused, self.functional = nn.Linear(4, 4, **DOUBLE), nn.Linear(4, 4, **DOUBLE)
        self.free, self.head = nn.Parameter(torch.eye(4, **DOUBLE)), nn.Linear(4, 5, bias=False, **DOUBLE)
        self.head.weight = self.embed.weight

    def forward(self, x):
        h = self.norm(torch.tanh(self.first(self.embed(x) @ self.free)))
        h = self.frozen(h + self.attention(h, h, h, need_weights=False)[0])
        return self.head(torch.tanh(nn.functional.linear(h, self.functional.weight, self.functional.bias)))


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_what_has_no_rows_is_named_and_trains_on_the_base(cls):
    model, x = Odd(), torch.arange(10).view(2, 5) % 5
    engine = attach(model, cls(model.parameters(), lr=0.02), KFAC(fisher="empirical", damping=0.1, clip=1e-2, period=1))
    verdicts = {row.name: row.verdict for row in engine.plan.rows}
    for name, reason in {
        "embed.weight": "base: tied: embed and head share it",
        "attention.in_proj_weight": "hidden: ",
        "attention.out_proj.weight": "hidden: ",
        "free": "base: not the weight of a layer",
        "norm.bias": "with norm.weight",
        "first.bias": "with first.weight",
    }.items():
        assert verdicts[name].startswith(reason)
        assert name in str(engine.plan)
    start, values = {k: p.detach().clone() for k, p in model.named_parameters()}, []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(20):
            loss = nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten())
            values.append(float(loss.detach()))
            step(engine, loss)
    told = [str(w.message) for w in warned if "has a gradient" in str(w.message)]
    assert [text.split()[0] for text in told] == ["functional.weight"]  # once
    assert values[-1] < values[0]
    assert engine.report.preconditioned + engine.report.bent == 4
    still = {k for k, p in model.named_parameters() if torch.equal(p, start[k])}
    assert still == {"frozen.weight", "frozen.bias", "unused.weight", "unused.bias"}
