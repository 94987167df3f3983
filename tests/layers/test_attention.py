"""Attention as rows: against its own definition made of plain layers, and what is heard while it runs."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_so import KFAC, Mixture, attach
from lightning_so.layers.calls import Ear
from tests.layers.test_layers import DOUBLE, randn, spied, with_one
from tests.methods.test_kfac import close, error, factors, product, sgd, step
from tests.support.daily import daily

LINEAR, E, HEADS = F.linear, 4, 2


@pytest.fixture(autouse=True)
def _original():
    """No test leaves anything in place of torch's function."""
    yield
    assert F.linear is LINEAR


def attention(**arguments):
    """One whose biases are not zero, and whose matrices lie in larger storages."""
    made = nn.MultiheadAttention(E, HEADS, **arguments, **DOUBLE)
    for p in made.parameters():
        p.data = torch.cat([torch.zeros_like(p), randn(*p.shape, seed=p.numel()) / 2])[len(p) :]
    return made


class Explicit(nn.Module):
    """The same of plain layers, samples first."""

    def __init__(self, attention):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(E, E, **DOUBLE) for _ in range(4))
        weights, biases = (p.detach().chunk(3) for p in (attention.in_proj_weight, attention.in_proj_bias))
        for layer, W, b in zip((self.q, self.k, self.v), weights, biases):
            layer.load_state_dict({"weight": W, "bias": b})
        self.out.load_state_dict(attention.out_proj.state_dict())

    def forward(self, *inputs):
        parts = (layer(x).unflatten(-1, (HEADS, -1)) for layer, x in zip((self.q, self.k, self.v), inputs))
        mixed = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        return self.out(mixed.transpose(1, 2).flatten(2))


#: By kind, what it attends with (queries, keys, values), and which of the three are one multiplication.
KINDS = {
    "self": (lambda q, k, v: (q, q, q), ["qkv"]),
    "keys-are-values": (lambda q, k, v: (q, k, k), ["q", "kv"]),
    "three": (lambda q, k, v: (q, k, v), ["q", "k", "v"]),
}


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("order", ["samples first", "positions first", "one sample"])
@pytest.mark.parametrize("weights", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_factors_are_those_of_the_definition(kind, weights, order, sharing):
    choose, calls = KINDS[kind]
    N, L = (1 if order == "one sample" else 4), 3
    if N == 1:  # torch adds a dimension of samples to each of the three, which makes them three.
        calls = KINDS["three"][1]
    inputs = choose(randn(N, L, E), randn(N, 2, E, seed=4), randn(N, 2, E, seed=5))
    layer = attention(batch_first=order == "samples first")
    explicit = Explicit(layer)
    seen = {name: uses[0] for name, uses in spied(explicit, "qkv", lambda m: m(*inputs).square().sum()).items()}
    (x_out, g_out), *_ = spied(explicit, ["out"], lambda m: m(*inputs).square().sum())["out"]
    engine = sgd(layer, KFAC(fisher="empirical", period=1, sharing=sharing))
    given = {id(x): x[0] if N == 1 else x if layer.batch_first else x.transpose(0, 1).contiguous() for x in inputs}
    out = layer(*(given[id(x)] for x in inputs), need_weights=weights)[0]
    close(out.detach().flatten().sort()[0], explicit(*inputs).detach().flatten().sort()[0])  # the oracle's own proof
    step(engine, out.square().sum(-1).mean())

    def whole(call):
        parts = [seen[name][1] if name in call else torch.zeros_like(seen[call[0]][1]) for name in "qkv"]
        return with_one(seen[call[0]][0]), torch.cat(parts, -1)

    # A term of the loss is a position; of a sample, the mean of them.
    for name, uses in {"in_proj_weight": map(whole, calls), "out_proj.weight": [(with_one(x_out), g_out)]}.items():
        A, G, count = 0, 0, 0
        for a, g in uses:
            if sharing == "reduce":
                a, g = a.mean(1, keepdim=True), g.sum(1, keepdim=True) / L
            A, count = A + torch.einsum("nti,ntj->ij", a, a), count + a.shape[0] * a.shape[1]
            G = G + torch.einsum("nti,ntj->ij", g, g) / (N if sharing == "reduce" else N * L)
        found = factors(engine, name)
        close(found[0][0], A / count)
        close(found[1][0], G)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("widths", [{}, {"kdim": 3, "vdim": 5}], ids=["packed", "widths"])
def test_one_sample_and_one_position_give_the_dense_fisher_of_every_matrix(widths, sharing):
    # A key of zeros beside the only one keeps the softmax from being constant.
    layer = attention(add_zero_attn=True, **widths)
    x = randn(1, 1, E)
    inputs = [randn(1, 1, widths[name], seed=4) for name in widths] or [x, x]
    blocks = {
        "in_proj_weight": ["in_proj_bias"],
        "out_proj.weight": ["out_proj.bias"],
        "q_proj_weight": [],
        "k_proj_weight": [],
        "v_proj_weight": [],
    }
    params = dict(layer.named_parameters())
    blocks = {name: [params[key] for key in (name, *biases)] for name, biases in blocks.items() if name in params}
    value, expected = layer(x, *inputs)[0].square().sum(), {}
    for name, own in blocks.items():
        grads = torch.autograd.grad(value, own, retain_graph=True)
        flat = torch.cat([grads[0], *(g[:, None] for g in grads[1:])], 1).flatten()
        assert float(flat.norm()) > 1e-3
        expected[name] = torch.outer(flat, flat)
    engine = sgd(layer, KFAC(fisher="empirical", period=1, sharing=sharing))
    step(engine, layer(x, *inputs)[0].square().sum())
    assert {block.name for block in engine.plan.blocks} == set(expected)
    for name, exact in expected.items():
        close(product(engine, name), exact)


class Net(nn.Module):
    """Attention between plain layers: torch's, or made of a layer for all three and one behind."""

    def __init__(self, plain, batch_first=True, mode=None):
        super().__init__()
        self.plain, self.mode = plain, mode
        self.embed, self.head = nn.Linear(3, E, **DOUBLE), nn.Linear(E, 2, **DOUBLE)
        if plain:
            self.qkv, self.out = nn.Linear(E, 3 * E, **DOUBLE), nn.Linear(E, E, **DOUBLE)
        else:
            self.attention = nn.MultiheadAttention(E, HEADS, batch_first=batch_first, **DOUBLE)

    def attend(self, x):
        if self.plain:
            parts = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            return self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        x = x if self.attention.batch_first else x.transpose(0, 1)
        x = self.attention(x, x, x, need_weights=False)[0]
        return x if self.attention.batch_first else x.transpose(0, 1)

    def forward(self, x):
        x = torch.tanh(self.embed(x))
        x = self.attend(x) if self.mode is None else checkpoint(self.attend, x, use_reentrant=self.mode == "reentrant")
        return self.head(torch.tanh(x))

    def matrices(self):
        """In one order for both."""
        layers = [self.qkv, self.out] if self.plain else [self.attention, self.attention.out_proj]
        own = [p for layer in layers for p in layer.parameters(recurse=False)]
        return [*self.embed.parameters(), *own, *self.head.parameters()]


def nets(**arguments):
    twins = Net(True), Net(False, **arguments)
    with torch.no_grad():
        for p, q in zip(twins[0].matrices(), twins[1].matrices(), strict=True):
            q.copy_(p)
    return twins


def walk(engine, steps=8, parts=1):
    """Steps on sequences of which the ends are padding; the loss is that of the last position or of all."""
    for t in range(steps):
        x, mask = randn(6, 5, 3, seed=t), torch.arange(5) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None]
        engine.optimizer.zero_grad()
        for part, real in zip(x.chunk(parts), mask.chunk(parts)):
            # As many terms in every part, so that parts are means like the whole.
            loss = (engine.host.model(part).square().sum(2) * real).sum() / (real.sum() * parts)
            engine.before_backward(loss)
            loss.backward()
        engine.optimizer.step()


METHODS = {
    "empirical": KFAC(fisher="empirical", period=1, damping=0.1),
    "reduce": KFAC(fisher="empirical", period=1, damping=0.1, sharing="reduce"),
    "sampled": KFAC(period=1, damping=0.1, fisher="sampled"),
    "exact": KFAC(period=1, damping=0.1, fisher="exact"),
    "some-rows": KFAC(fisher="empirical", period=1, damping=0.1, rows=8),
    "product": KFAC(fisher="empirical", period=2, damping=0.1, exact=True),
}


@pytest.mark.parametrize("batch_first", [True, False], ids=["samples-first", "positions-first"])
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("method", daily(METHODS, "reduce", "product"))
def test_it_trains_as_the_layers_that_it_is_made_of(method, cls, batch_first):
    twins = nets(batch_first=batch_first)
    start = [p.detach().clone() for p in twins[0].matrices()]
    for model in twins:
        engine = attach(model, cls(model.parameters(), lr=0.05), METHODS[method])
        walk(engine)
        assert engine.report.preconditioned + engine.report.bent == len(engine.plan.blocks) == 4
        assert engine.report.failures == 0
    for p, q, old in zip(twins[0].matrices(), twins[1].matrices(), start, strict=True):
        close(q.detach(), p.detach(), 1e-7)
        assert error(p, old) > 1e-4


@pytest.mark.parametrize(
    ("method", "mode"), [("empirical", "reentrant"), ("empirical", "not reentrant"), ("sampled", "not reentrant")]
)
def test_a_checkpoint_changes_nothing(method, mode):
    plain, model = nets(mode=mode)
    for net in (plain, model):
        walk(attach(net, torch.optim.SGD(net.parameters(), lr=0.05), METHODS[method]), steps=4)
    for p, q in zip(plain.matrices(), model.matrices(), strict=True):
        close(q.detach(), p.detach(), 1e-8)


def test_two_parts_of_a_batch_are_the_batch():
    whole = nets()[1]
    parts = copy.deepcopy(whole)
    method = KFAC(fisher="empirical", period=1, damping=0.1, sharing="reduce")
    engines = [attach(net, torch.optim.SGD(net.parameters(), lr=0.0), method) for net in (whole, parts)]
    for engine, count in zip(engines, (1, 2)):
        for _ in range(2):
            engine.optimizer.zero_grad()
            for x in randn(6, 5, 3).chunk(count):
                (engine.host.model(x).square().sum((1, 2)).mean() / count).backward()
            engine.optimizer.step()
    for name in ("attention.in_proj_weight", "attention.out_proj.weight"):
        for found, expected in zip(factors(engines[1], name), factors(engines[0], name)):
            close(found, expected)


def test_calls_of_which_a_sample_is_taken_weigh_as_all_of_it():
    layer, N, few, many = attention(batch_first=True), 6, 1, 4
    q, k = randn(N, few, E), randn(N, many, E, seed=4)
    engine = sgd(
        layer, KFAC(fisher="empirical", period=1, rows=8)
    )  # 6 positions of queries, 24 of keys: every third one
    step(engine, layer(q, k, k)[0].square().sum())
    found, options = factors(engine, "in_proj_weight")[0][0], []
    for first in range(3):
        a, b = with_one(q).flatten(0, 1), with_one(k).flatten(0, 1)[first::3]
        options.append((a.mT @ a + 3 * b.mT @ b) / (N * few + N * many))
    assert sum(torch.allclose(found, option, rtol=1e-10) for option in options) == 1


# ---------------------------------------------------------------- what is heard


def test_a_forward_pass_that_raises_leaves_nothing_behind():
    _, model = nets()
    engine = sgd(model, METHODS["empirical"], lr=0.05)
    with pytest.raises(AssertionError):
        model.attention(randn(2, 3, E), randn(2, 3, E), randn(2, 4, E))
    assert F.linear is LINEAR
    with pytest.raises(RuntimeError, match="shape"):  # between the two multiplications
        model.attention(*[randn(2, 3, E)] * 3, attn_mask=torch.zeros(4, 4, **DOUBLE))
    assert F.linear is LINEAR
    walk(engine, steps=1)
    assert engine.report.preconditioned == 4


def test_a_forward_pass_that_is_interrupted_leaves_nothing_behind_when_hooks_are_taken_back():
    _, model = nets()
    engine = sgd(model, METHODS["empirical"], lr=0.05)

    def interrupt(module, args, kwargs):
        raise KeyboardInterrupt

    handle = model.attention.register_forward_pre_hook(interrupt, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        model(randn(2, 3, 3))
    handle.remove()
    engine.disarm()
    assert F.linear is LINEAR


def test_two_methods_listen_to_one_module():
    plain, model = nets()
    other = KFAC(fisher="empirical", period=1, damping=0.1, cap=512)
    rules = [{"qkv*": METHODS["empirical"], "*": other}, {"*in_proj*": METHODS["empirical"], "*": other}]
    for net, rule in zip((plain, model), rules):
        engine = attach(net, torch.optim.SGD(net.parameters(), lr=0.05), Mixture(rule))
        assert len(engine.recorders) == 2
        walk(engine)
    for p, q in zip(plain.matrices(), model.matrices(), strict=True):
        close(q.detach(), p.detach(), 1e-7)


def test_one_ear_closes_and_the_other_still_hears():
    ears, heard, W = (Ear(), Ear()), ([], []), torch.eye(2)
    for ear, calls in zip(ears, heard):
        ear.open(lambda *call, calls=calls: calls.append(call))
    F.linear(torch.ones(2), W)
    ears[0].remove()
    F.linear(torch.ones(2), W)
    ears[0].remove()
    ears[1].remove()
    F.linear(torch.ones(2), W)
    assert [len(calls) for calls in heard] == [1, 2]
    assert all(weight is W for weight, _, _ in heard[1])


def test_a_backward_pass_in_evaluation_mode_is_no_statistics():
    _, model = nets()
    engine = sgd(model, METHODS["empirical"])
    model.eval()
    model(randn(2, 3, 3)).square().sum().backward()
    assert not engine.recorders[0].seen.fired
    model.train()
    model(randn(2, 3, 3)).square().sum().backward()
    assert len(engine.recorders[0].seen.fired) == 4


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_in_the_way_where_nothing_is_watched(training, monkeypatch):
    _, model = nets()
    sgd(model, METHODS["empirical"])
    model.train(training)
    seen, native, x = [], torch._native_multi_head_attention, randn(2, 3, E)
    monkeypatch.setattr(torch, "_native_multi_head_attention", lambda *args: seen.append(args) or native(*args))
    model.attention.register_forward_pre_hook(lambda module, args: seen.append(F.linear))
    with torch.no_grad():
        model.attention(x, x, x)
    assert seen[0] is LINEAR
    assert len(seen) == (1 if training else 2)  # torch's own fast path


# ---------------------------------------------------------------- whole layers, and what is refused


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_every_parameter_of_a_transformer_layer_is_covered(kind, cls):
    model, x = kind(8, 2, 16, dropout=0.0, batch_first=True), torch.randn(4, 3, 8)
    others = [torch.randn(4, 5, 8)] if kind is nn.TransformerDecoderLayer else []
    engine = attach(model, cls(model.parameters(), lr=1e-3), KFAC(fisher="empirical", period=2))
    assert [row.name for row in engine.plan.rows if row.verdict.startswith("base")] == []
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    for _ in range(6):
        step(engine, (model(x, *others) - x.flip(1)).square().mean())
    report = engine.report
    assert report.preconditioned + report.bent == len(engine.plan.blocks)
    assert report.failures == 0
    assert not engine.recorders[0].silent
    assert [key for key, p in model.named_parameters() if torch.equal(p, before[key])] == []
    model.eval()
    with torch.no_grad():
        model(x, *others)


class Own(nn.MultiheadAttention):
    """One with a forward pass of its own."""

    def forward(self, x):
        return super().forward(x, x, x)[0]


def test_what_is_no_part_of_a_matrix_is_named():
    model = nn.ModuleDict({"a": attention(kdim=3, add_bias_kv=True), "b": Own(E, HEADS, **DOUBLE), "c": attention()})
    model["tied"] = nn.Linear(E, E)
    model["tied"].weight = model["c"].out_proj.weight
    engine = sgd(model, KFAC(fisher="empirical"))
    verdicts = {row.name: row.verdict for row in engine.plan.rows}
    for name in ("in_proj_bias", "bias_k", "bias_v"):
        assert verdicts[f"a.{name}"] == f"base: {name} of MultiheadAttention is not a column of its matrix"
    assert verdicts["b.in_proj_weight"].startswith(f"base: no rows for {__name__}.Own: its forward pass is ")
    assert "MultiheadAttention" in verdicts["b.in_proj_weight"]
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"):
        assert verdicts[f"a.{name}"].startswith("hidden: ")
    assert verdicts["c.out_proj.weight"] == "base: tied: c.out_proj and tied share it"
    assert verdicts["c.in_proj_weight"].startswith("hidden: ")
    assert verdicts["a.out_proj.bias"] == "with a.out_proj.weight"
