"""A batch without samples, or an expert without tokens, is no observation; training goes on as it does without us."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_so import EKFAC, KFAC, attach
from tests.support.daily import one_in

SGD, ADAMW = (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {"weight_decay": 0.0})
CASES = [(cls(period=1, fisher=f), SGD) for cls in (KFAC, EKFAC) for f in ("empirical", "sampled")]
CASES += [(KFAC(period=1, fisher="exact", sharing="reduce", exact=True), SGD)]
CASES += [(KFAC(fisher="empirical", period=1), ADAMW), (EKFAC(fisher="empirical", period=1, start=2), ADAMW)]
EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{type(case[0]).__name__}-{case[1][0].__name__}")


class Attention(nn.Module):
    """Tokens, attention, a normalisation."""

    def __init__(self):
        super().__init__()
        self.table, self.attention = nn.Embedding(7, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.table(x)
        return self.head(self.norm(h + self.attention(h, h, h, need_weights=False)[0]).mean(1))


class Routed(nn.Module):
    """A head behind two experts, of which the second one gets no samples, or is not asked."""

    def __init__(self, asked=True):
        super().__init__()
        self.head, self.experts, self.asked = nn.Linear(6, 3), nn.ModuleList(nn.Linear(6, 6) for _ in range(2)), asked

    def forward(self, x):
        h = self.experts[0](x)
        return self.head((torch.cat([h, self.experts[1](x[:0])]) if self.asked else h).tanh())


class Twice(nn.Module):
    """Uses a layer several times, of which some are without samples."""

    def __init__(self, empty=True):
        super().__init__()
        self.layer, self.head, self.empty = nn.Linear(6, 6), nn.Linear(6, 3), empty

    def forward(self, x):
        parts = (x[:0], x, x[:0]) if self.empty else (x,)
        return self.head(torch.cat([self.layer(part) for part in parts]).tanh())


class Convolution(nn.Sequential):
    """A convolution and a matrix."""

    def __init__(self):
        super().__init__(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))


def images(n, g):
    return torch.randn(n, 2, 4, 4, generator=g)


def tokens(n, g):
    return torch.randint(7, (n, 5), generator=g)


def rows(n, g):
    return torch.randn(n, 6, generator=g)


MODELS = {"convolution": (Convolution, images), "attention": (Attention, tokens), "twice": (Twice, rows)}


def trained(case, model, inputs, sizes, divided=None):
    """The engine and the weights after a step a tuple of sizes, of micro-batches."""
    method, (base, options) = case
    engine = attach(model, base(model.parameters(), lr=1e-2, **options), method)
    for number, of_step in enumerate(sizes):
        engine.optimizer.zero_grad()
        if divided:
            engine.loss_is(divided=divided, scale=1.0, shown=True)
        for n in of_step:
            g = torch.Generator().manual_seed(100 * number + n)
            x, y = inputs(n, g), torch.randint(3, (n,), generator=g)
            loss = F.cross_entropy(model(x), y) / (divided or len(of_step))
            engine.before_backward(loss)
            loss.backward()
        engine.optimizer.step()
    return engine, [p.detach().clone() for p in model.parameters()]


def made(name):
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    return make(), inputs


def tensors(engine):
    blocks = engine.state_dict()["blocks"]
    return {(name, key): x for name, of in blocks.items() for key, x in of["tensors"].items()}


def agree(one, other):
    """Whether two trainings have the same weights, and the same statistics of the blocks that both have observed."""
    theirs = tensors(other[0])
    seen = {name for name, row in ((n, row) for n, row in theirs.items() if n[1] == "weight") if bool(row.any())}
    for place, x in tensors(one[0]).items():
        assert (place[0], "weight") not in seen or torch.equal(x, theirs[place]), place
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


@EVERY
@pytest.mark.parametrize("name", one_in(3, MODELS))
def test_micro_batches_without_samples_are_no_observation(case, name):
    # Which numbers are drawn hangs on how many micro-batches were before.
    steps = [(8, 6, 0)] * 3 if case[0].fisher == "sampled" else [(0, 8, 6), (8, 0, 6), (8, 6, 0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = trained(case, *made(name), steps)
    agree(found, trained(case, *made(name), [(8, 6)] * 3, divided=3))


@EVERY
@pytest.mark.parametrize("kind", [Twice, Routed])
def test_uses_of_a_layer_without_samples_are_no_observation(case, kind):
    both = []
    for more in (True, False):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            both.append(trained(case, kind(more), rows, [(8,)] * 3))
    agree(*both)


@EVERY
@pytest.mark.parametrize("name", MODELS)
def test_a_step_without_samples_observes_nothing_and_the_next_goes_on(case, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine, weights = trained(case, *made(name), [(0,), (8,), (8,), (0,), (8,), (8,)])
    assert (engine.report.step, engine.report.skipped) == (6, 0)
    # Nothing can be solved before something was observed.
    assert engine.report.failures <= len(engine.parts.units)
    assert all(bool(x.isfinite().all()) for x in (*weights, *tensors(engine).values()))


@EVERY
def test_a_step_without_samples_changes_no_statistics(case):
    before, after = (trained(case, *made("convolution"), [(8,)] * 2 + empty) for empty in ([], [(0,)]))
    old = tensors(before[0])
    for (name, key), x in tensors(after[0]).items():
        if key.startswith(("inputs.factor", "outputs.factor")) or key == "weight":
            assert torch.equal(x, old[name, key]), key
