"""Small problems and base optimizers that many tests share."""

import torch
from torch import nn

from tests.support import noted

#: (class, arguments): every registered optimizer, with both kinds of decay, momentum, and the variants that exist.
BASES = [
    (torch.optim.AdamW, {"weight_decay": 0.1}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "foreach": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "fused": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "amsgrad": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "maximize": True}),
    (torch.optim.Adam, {"weight_decay": 0.1}),
    (torch.optim.Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    (torch.optim.Adam, {"weight_decay": 0.1, "maximize": True, "fused": True}),
    (torch.optim.Adam, {"lr": torch.tensor(1e-3), "foreach": False}),
    (torch.optim.NAdam, {"weight_decay": 0.1}),
    (torch.optim.NAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    (torch.optim.RAdam, {"weight_decay": 0.1}),
    (torch.optim.RAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    (torch.optim.RMSprop, {"weight_decay": 0.1, "momentum": 0.9}),
    (torch.optim.RMSprop, {"weight_decay": 0.1, "centered": True}),
    (torch.optim.Adagrad, {"weight_decay": 0.1}),
    (torch.optim.Adagrad, {"fused": True}),
]
SGDS = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
]


def name(case) -> str:
    """A readable test id."""
    cls, arguments = case
    return cls.__name__ + "".join(
        f"-{k}={v}" if not isinstance(v, torch.Tensor) else f"-{k}=T" for k, v in arguments.items()
    )


class Net(nn.Module):
    """A convolution, a tall and a wide matrix, biases, and a one-dimensional scale."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, dtype=dtype)
        self.tall = nn.Linear(4 * 4 * 4, 6, dtype=dtype)
        self.scale = nn.Parameter(torch.ones(6, dtype=dtype))
        self.wide = nn.Linear(6, 10, dtype=dtype)

    def forward(self, x):
        return self.wide(torch.tanh(self.tall(torch.tanh(self.conv(x)).flatten(1)) * self.scale))


def batch(step: int, dtype: torch.dtype = torch.float32):
    """A fixed stream of batches."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 2, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 10, (8,), generator=generator)
    return x, y


def train(model, optimizer, steps: range, dtype: torch.dtype = torch.float32, before=None) -> list[float]:
    """A plain loop; returns the losses."""
    losses = []
    for step in steps:
        x, y = batch(step, dtype)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        if before is not None:
            before(step)
        optimizer.step()
        losses.append(loss.item())
    if hasattr(optimizer, "_lightning_so"):
        noted.ran([optimizer._lightning_so], "one", noted.LOOP)
    return losses
