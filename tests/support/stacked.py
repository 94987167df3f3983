"""Experts in one parameter and in ones of their own, a fused projection and three: models that must train alike."""

import torch
from torch import nn

from tests.support import noted

#: Experts, of which the last gets no tokens at all; inner width.
EXPERTS, INNER = 5, 17


class Experts(nn.Module):
    """Tokens go to experts by their place: `tanh(x w1[e]) w2[e]`; the last expert's gradient is zero at every step.

    Each expert is used once in a step, so that a gradient is no sum whose order could differ.
    """

    def __init__(self, width: int, *, apart: bool = False) -> None:
        super().__init__()
        first = torch.randn(EXPERTS, width, INNER) / width**0.5
        second = torch.randn(EXPERTS, INNER, width) / INNER**0.5
        self.w1, self.w2 = self._held(first, apart), self._held(second, apart)

    def _held(self, numbers, apart):
        return nn.ParameterList([p.clone() for p in numbers]) if apart else nn.Parameter(numbers)

    def forward(self, x):
        places = torch.arange(x.shape[-2]) % (EXPERTS - 1)
        y = torch.zeros_like(x)
        for expert in range(EXPERTS):
            chosen = (places == expert).to(x.dtype)[:, None]
            y = y + chosen * (torch.tanh(x @ self.w1[expert]) @ self.w2[expert])
        return y


class Third(nn.Module):
    """Three projections of one weight, or of three; product by product, so that rounding is the same."""

    def __init__(self, width: int, *, apart: bool = False) -> None:
        super().__init__()
        numbers = torch.randn(3 * width, width) / width**0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.qkv.weight = nn.Parameter(numbers)
        self.width, self.three = width, None
        if apart:
            self.qkv, self.three = None, nn.ParameterList([p.clone() for p in numbers.chunk(3)])

    def forward(self, x):
        weights = self.qkv.weight.split(self.width) if self.three is None else self.three
        query, key, value = (x @ weight.mT for weight in weights)
        return x + torch.tanh(query) * torch.sigmoid(key) * value


class Stacked(nn.Module):
    """Places for every sample, a fused projection, experts, and a head."""

    def __init__(self, *, apart: bool = False) -> None:
        super().__init__()
        self.experts, self.third = Experts(12, apart=apart), Third(12, apart=apart)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = self.third(x)
        return self.head(x + self.experts(x))


SPLIT = {"split": {"*qkv.weight": 3}}


def made(*, apart: bool = False, dtype=torch.float32) -> Stacked:
    """The same numbers, in either form."""
    torch.manual_seed(0)
    return Stacked(apart=apart).to(dtype)


def batch(step: int, dtype=torch.float32):
    """Sequences of eight, of which some steps have tokens of some experts alone."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(4, 8, 12, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 10, (4, 8), generator=generator)
    return (x[:, :2], y[:, :2]) if step % 3 == 2 else (x, y)


def loop(model, optimizer, steps, accumulate=1, clip=None) -> None:
    """A plain loop."""
    for step in steps:
        optimizer.zero_grad()
        for part in range(accumulate):
            x, y = batch(step * accumulate + part, next(model.parameters()).dtype)
            loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()) / accumulate
            loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    noted.ran([optimizer._lightning_so], "one", noted.LOOP, accumulation=accumulate > 1, clipping=clip)


def gathered(model) -> dict[str, torch.Tensor]:
    """Weights of either form, as those of the stacked one."""
    found = {name: param.detach().clone() for name, param in model.named_parameters()}
    if model.third.three is None:
        return found
    rest = {name: found[name] for name in ("head.weight", "head.bias")}
    stacked = {f"experts.{w}": torch.stack([p.detach() for p in getattr(model.experts, w)]) for w in ("w1", "w2")}
    return {**stacked, "third.qkv.weight": torch.cat([p.detach() for p in model.third.three]), **rest}


def with_experts(net) -> None:
    """Give the blocks of `transformer.Transformer` experts in place of their second matrix."""
    for block in net.blocks:
        block.up, block.down = nn.Identity(), Experts(15)
