"""Counts what a step dispatches: on a device each operation is a launch, and each read of a number a wait."""

from collections import Counter
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_so import attach

READ = "aten._local_scalar_dense.default"


class Operations(TorchDispatchMode):
    """Counts the operations inside of the context, by name; views are none, and a list of numbers is one read."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter()

    def __enter__(self):
        tolist = torch.Tensor.tolist

        def read(tensor):
            self.found[READ] += 1
            return tolist(tensor)

        self._patch = mock.patch.object(torch.Tensor, "tolist", read)
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        self._patch.stop()
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if not function.is_view:
            self.found[str(function)] += 1
        return function(*arguments, **(named or {}))


class Block(nn.Module):
    """A block of a transformer."""

    def __init__(self, width):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        h = self.first(x)
        attended = nn.functional.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h))
        x = x + self.out(attended)
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


def transformer(blocks, width=16, words=24):
    """A small one of equal blocks."""
    torch.manual_seed(0)
    body = [Block(width) for _ in range(blocks)]
    return nn.Sequential(nn.Embedding(words, width), *body, nn.Linear(width, words))


def of_steps(method, blocks, **steps):
    """What the last of some steps of AdamW dispatch with a method, beyond AdamW's own: one counter a step."""
    alone, ours = ([step for _, step, _ in trained(used, blocks, **steps)] for used in (None, method))
    return [count - alone[0] for count in ours]


def of_passes(method, blocks, **steps):
    """What the forward and backward passes of those steps dispatch for a method: a counter and the layers watched."""
    alone, ours = (trained(used, blocks, **steps) for used in (None, method))
    return [(passes - alone[0][0], watched) for passes, _, watched in ours]


def trained(method, blocks, *, steps=46, last=6):
    """Operations of the passes and of the step, and how many layers were watched, of each of the last steps."""
    found, model = [], transformer(blocks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    engine = None if method is None else attach(model, optimizer, method)
    words = torch.arange(24).view(3, 8)
    for step in range(steps):
        optimizer.zero_grad()
        watched = 0 if engine is None else sum(len(recorder.seen.watched) for recorder in engine.recorders)
        with Operations() as passes:
            loss = nn.functional.cross_entropy(model(words).flatten(0, 1), words.flatten())
            if engine is not None:
                engine.before_backward(loss)
            loss.backward()
        with Operations() as stepped:
            optimizer.step()
        if step >= steps - last:
            found.append((passes.found, stepped.found, watched))
    return found
