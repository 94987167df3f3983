"""How long single pieces take on this machine, where a training cannot be run on it: products, a pass, solves."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_so.contract.block import StackSpec
from lightning_so.contract.method import Solves
from lightning_so.core.assembly import Parts
from lightning_so.core.measure import Clock, medians, waiting_clock
from lightning_so.core.overhead.timings import Timings

#: The most rows and columns of a product, and the most numbers of a pass, that are timed: larger ones go as fast.
ROWS, SIDE, PASS = 4096, 4096, 2**24


def pieces(parts: Parts, own: float, steady: float, tokens: int, device: torch.device) -> Timings:
    """The parts of a step, from pieces of it.

    Args:
        parts: Those of an engine, whose tensors have no numbers.
        own: Multiply-adds of the training's own step.
        steady: Multiply-adds of every step beside it.
        tokens: Rows of its products.
        device: What is timed.

    Returns:
        The timings. Rows that methods observe cost nothing in them.
    """
    clock, dtype = waiting_clock(device), parts.stacks[0].dtype
    m, n = (
        min(side, SIDE) for side in max((stack.shape for stack in parts.stacks), key=lambda shape: shape[0] * shape[1])
    )
    rows = min(tokens, ROWS)
    X, W, batch, Q = (
        torch.randn(*shape, dtype=dtype, device=device) for shape in ((rows, n), (n, m), (1, m, n), (1, n, n))
    )
    weights = nn.Parameter(torch.randn(min(PASS, _numbers(parts)), dtype=dtype, device=device))
    weights.grad = torch.randn_like(weights)
    optimizer = torch.optim.AdamW([weights])
    seconds = medians({"product": lambda: X @ W, "turn": lambda: batch @ Q, "pass": optimizer.step}, clock)
    return Timings(
        own * seconds["product"] / (rows * n * m) + seconds["pass"] * _numbers(parts) / weights.numel(),
        steady * seconds["turn"] / (m * n * n),
        0.0,
        0.0,
        1,
        tuple(_solves(parts, device, clock)),
    )


def _numbers(parts: Parts) -> int:
    return sum(row.numel for row in parts.plan.rows)


def _solves(parts: Parts, device: torch.device, clock: Clock) -> list[float]:
    """Seconds of a solve of each kind of unit, of factors of random numbers."""
    found = dict[int, float]()
    for number, kind in enumerate(parts.units.kinds):
        if kind in found:
            continue
        unit, stack = parts.units[number], parts.units.stack(number)
        block = replace(stack.blocks[unit.row], param=nn.Parameter(torch.empty(0, device=device)), bias=None)
        method = stack.solving
        stats = method.init(StackSpec([block], stack.dtype, device), parts.host.base)
        _fill(method, stats)
        asked = [(stats, replace(unit, stack=0, row=0))]
        found[kind] = medians({"solve": lambda method=method, asked=asked: method.solve(asked)}, clock)["solve"]
    return [found[kind] for kind in sorted(found)]


def _fill(method: Solves, stats: object) -> None:
    """Give factors numbers: symmetric positive ones, and ones where they are no matrices."""
    for _, factor in method.factors(stats):
        square = factor.ndim > 2 and factor.shape[-1] == factor.shape[-2]
        factor.copy_(_positive(factor) if square else torch.ones_like(factor))


def _positive(like: Tensor) -> Tensor:
    X = torch.randn_like(like)
    return X @ X.mT / like.shape[-1]
