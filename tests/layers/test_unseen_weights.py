"""Pitfall 15: in a hook a sharded layer's weight is a piece, or its memory is gone, so nothing may read it."""

import copy
from itertools import product

import pytest
import torch
from torch import nn

from lightning_so.layers.factor_rows import factor_rows
from lightning_so.layers.registry import lookup
from lightning_so.layers.squares import squares
from tests.layers.test_layers import DOUBLE, KERNELS, NORMS, randn

LAYERS = {
    **KERNELS,
    **{name: (make(), shape) for name, (make, shape) in NORMS.items()},
    "linear": (nn.Linear(4, 3, **DOUBLE), (5, 2, 4)),
    "embedding": (nn.Embedding(7, 4, padding_idx=1, **DOUBLE), None),
    "attention": (nn.MultiheadAttention(4, 2, **DOUBLE), (5, 2, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_seen_without_their_weights(name):
    layer, shape = copy.deepcopy(LAYERS[name][0]), LAYERS[name][1]
    x = torch.arange(6).view(2, 3) if shape is None else randn(*shape)
    gradient = randn(*(x.shape if isinstance(layer, nn.MultiheadAttention) else layer(x).shape), seed=4)

    def seen():
        found = []
        for described in lookup(layer):
            bias = described.bias is not None and getattr(layer, described.bias, None) is not None
            common = {"unit": 2.0, "one": 1.0 if bias else None, "dtype": torch.float64}
            for reduce, most in product((False, True), (3, 10**6)):
                rows = factor_rows(described, layer, x, gradient, reduce=reduce, most=most, step=5, **common)
                found += [rows.a, rows.g, rows.count, rows.share]
            same = {"inputs": lambda X: X, "outputs": lambda X: X}
            found += [squares(described, layer, x, gradient, **common, **same), described.groups(layer)]
        return found

    whole = seen()
    # Whatever read one of them now would give a tensor without numbers.
    layer.to("meta")
    for before, after in zip(whole, seen(), strict=True):
        assert torch.equal(torch.as_tensor(before), torch.as_tensor(after))
