"""Which samples and positions build a factor: all have the same chance, and nothing of the others is touched."""

import math
from itertools import chain, pairwise

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_so import KFAC, attach
from lightning_so.layers import sampling
from lightning_so.layers.factor_rows import factor_rows
from lightning_so.layers.registry import lookup
from lightning_so.linalg.sides import Side
from tests.layers.test_layers import DOUBLE, randn
from tests.methods.test_kfac import stats_of

LAYERS = {
    "linear": (nn.Linear(4, 3, **DOUBLE), (6, 5, 4)),
    "one sample": (nn.Linear(4, 3, **DOUBLE), (1, 30, 4)),
    "conv": (nn.Conv2d(2, 3, 2, padding=1, **DOUBLE), (6, 2, 4, 3)),
    "grouped": (nn.Conv1d(4, 2, 3, groups=2, **DOUBLE), (6, 4, 7)),
    "transposed": (nn.ConvTranspose2d(2, 3, 2, stride=2, **DOUBLE), (6, 2, 3, 2)),
    "embedding": (nn.Embedding(7, 4, **DOUBLE), None),
}


@pytest.mark.parametrize(("count", "most", "each"), [(40, 8, 4), (40, 8, 1), (64, 32, 8), (7, 1, 7), (9, 20, 3)])
def test_each_thing_is_drawn_once_in_as_many_steps_as_the_stride(count, most, each):
    kept = [sampling.every(count, most, step, each) for step in range(sampling.LEAP, sampling.LEAP + 200)]
    if most >= count:
        assert kept == [None] * 200
        return
    stride, drawn = kept[0].step, [list(range(count))[one] for one in kept]
    assert math.gcd(stride, each) == 1
    assert sorted(chain.from_iterable(drawn[: min(stride, count)])) == list(range(count))
    assert max(map(len, drawn)) <= most
    for before, after in pairwise(drawn[0]):
        assert after - before == stride


@pytest.mark.parametrize("spread", [1, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_sums_over_all_draws_are_those_of_all_positions(name, spread, monkeypatch):
    monkeypatch.setattr(sampling, "SPREAD", spread)  # how many positions whole samples are drawn for first
    layer, shape = LAYERS[name]
    x = torch.arange(30).view(6, 5) % 7 if shape is None else randn(*shape)
    g, described = randn(*layer(x).shape, seed=4), lookup(layer)[0]

    def sums(most, step):
        options = {"one": 1.0 if described.bias and shape else None, "reduce": False, "dtype": torch.float64}
        rows = factor_rows(described, layer, x, g, unit=0.5, most=most, step=step, **options)
        a = rows.a if described.indices else rows.a.mT @ rows.a
        return rows, a, rows.g.mT @ rows.g

    whole, *expected = sums(10**6, 0)
    assert whole.share == 1
    strides, every = [], sampling.every

    def noted(*args):
        kept = every(*args)
        strides.append(1 if kept is None else kept.step)
        return kept

    monkeypatch.setattr(sampling, "every", noted)
    sums(5, 0)
    assert math.prod(strides) > 1
    # In as many steps each draw of samples meets each draw of positions once.
    every = [sums(5, step) for step in range(math.prod(strides))]
    for number, full in enumerate(expected, 1):
        mean = sum(one[number] for one in every) / sum(one[0].share for one in every)
        assert torch.allclose(mean, full, rtol=1e-10)
    assert max(one[0].g.shape[1] for one in every) < whole.g.shape[1]


class Largest(TorchDispatchMode):
    """The most numbers that any operation has written."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and not func.is_view and "reshape_alias" not in str(func):
            self.most = max(self.most, found.numel())
        return found


@pytest.mark.parametrize("name", ["linear", "one sample"])
def test_nothing_as_large_as_what_is_not_drawn_is_made(name):
    layer, shape = LAYERS[name]
    x = randn(*shape).repeat_interleave(20, 1)
    g = randn(*x.shape[:-1], 3, seed=4)
    with Largest() as found:
        options = {"unit": torch.tensor(2.0), "one": 1.0, "reduce": False, "dtype": torch.float64}
        factor_rows(lookup(layer)[0], layer, x, g, most=30, step=3, **options)
    assert found.most <= 30 * 5


@pytest.mark.parametrize(("width", "rows", "most"), [(3, 4096, 256), (400, 4096, 401), (400, 8, 8)])
@pytest.mark.parametrize("base", [torch.optim.AdamW, torch.optim.SGD])
def test_of_bent_updates_as_many_positions_are_drawn_as_the_widest_tile_has_rows(base, width, rows, most, monkeypatch):
    model, drawn = nn.Sequential(nn.Linear(width, 2, **DOUBLE)), []
    engine = attach(model, base(model.parameters(), lr=1e-3), KFAC(period=1, rows=rows))
    add, all_of_them = Side.add, 4 * 501

    def noted(side, row, rows, scale):
        drawn.append(rows.shape[1])
        add(side, row, rows, scale)

    monkeypatch.setattr(Side, "add", noted)
    model(randn(4, 501, width)).square().mean().backward()
    stats, row = stats_of(engine, "0.weight")
    assert float(stats.counts[row, 0]) == pytest.approx(all_of_them)
    if base is torch.optim.SGD and rows > all_of_them:
        assert drawn == [all_of_them] * 2
    else:
        assert drawn == [drawn[0]] * 2
        assert most / 2 < drawn[0] <= most
