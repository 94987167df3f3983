"""Counts what a step dispatches: on a device each operation is a launch, and each read of a number a wait."""

from collections import Counter
from contextlib import nullcontext
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


def of_steps(method, blocks, **how):
    """What steps of AdamW dispatch with a method, on a transformer; see `of_training`."""
    words = torch.arange(24).view(3, 8)

    def loss(model):
        return nn.functional.cross_entropy(model(words).flatten(0, 1), words.flatten())

    return of_training(method, lambda: transformer(blocks), loss, **how)


def of_training(method, made, loss_of, *, steps=46, last=6, **options):
    """What the last of some steps of AdamW dispatch with a method, beyond AdamW's own: one counter a step.

    Args:
        method: The method.
        made: Makes a model.
        loss_of: Gives the loss of a model.
        steps: Steps of it.
        last: Of how many of them it is counted.
        options: See `attach`.
    """
    # AdamW's own are the same at every step, once it has a state.
    (alone,) = _counted(made(), None, loss_of, steps=2, last=1)
    return [count - alone for count in _counted(made(), method, loss_of, steps=steps, last=last, **options)]


def _counted(model, method, loss_of, *, steps, last, **options):
    """What the last of some steps dispatch: one counter a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    engine, counts = None if method is None else attach(model, optimizer, method, **options), []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        if engine is not None:
            engine.before_backward(loss)
        loss.backward()
        with Operations() if step >= steps - last else nullcontext() as operations:
            optimizer.step()
        if operations is not None:
            counts.append(operations.found)
    return counts
