"""What can be computed in one of several ways, at the size at which a training has most of it."""

from collections.abc import Callable
from functools import cache, partial

import torch

from lightning_so.contract.method import Action
from lightning_so.core.host import Host
from lightning_so.core.measure import medians, waiting_clock
from lightning_so.core.schedule.units import Units
from lightning_so.linalg.basis import by_cholesky, by_householder, refresh
from lightning_so.linalg.polar import polar
from lightning_so.linalg.precision import FullPrecision, Rounded

#: Batch, rows and columns.
Size = tuple[int, int, int]
Work = Callable[[], object]
#: Most matrices of a batch that is timed.
MOST = 4


def sizes(units: Units, host: Host) -> dict[str, Size]:
    """What a training has of each, by field of `Ways`; nothing of what it does not compute, or not in float32.

    Args:
        units: Its units and stacks.
        host: The training.

    Returns:
        Number, rows and columns of the kind of matrices that cost most together.
    """
    costs: dict[str, dict[Size, float]] = {"refresh": {}, "polar": {}, "rotation": {}}

    def add(what: str, count: int, rows: int, columns: int, cost: float) -> None:
        size = min(count, MOST), rows, columns
        costs[what][size] = costs[what].get(size, 0.0) + cost

    widest = [0] * len(units.stacks)
    for unit in units:
        stack = units.stacks[unit.stack]
        if stack.sprinter is not None and unit.columns and stack.dtype is torch.float32:
            add("refresh", len(stack.blocks), unit.columns, unit.columns, unit.cost)
        widest[unit.stack] = max(widest[unit.stack], unit.columns)
    for stack, side in zip(units.stacks, widest, strict=True):
        if stack.versatile is None or stack.dtype is not torch.float32:
            continue
        (rows, columns), count = stack.shape, len(stack.blocks)
        actions = {stack.action(host, block, warm) for block in stack.blocks for warm in (False, True)}
        if Action.BEND in actions:
            add("polar", count, rows, columns, count * rows * columns * min(rows, columns))
        if stack.rotates and side:
            add("rotation", count, side, columns, count * rows * columns * side)
    return {what: max(found, key=lambda size: found[size]) for what, found in costs.items() if found}


@cache
def timed(what: str, size: Size, device: torch.device) -> dict[str, float]:
    """Median seconds of each way in which a device can compute something; once in a process."""
    return medians(ways_of(what, size, device), waiting_clock(device))


def ways_of(what: str, size: Size, device: torch.device) -> dict[str, Work]:
    """The ways in which something can be computed.

    Args:
        what: A field of `Ways`.
        size: See `sizes`.
        device: Where.

    Returns:
        By its name in `Ways`, what does it once.
    """
    count, rows, _ = size
    Q = torch.eye(rows, device=device).repeat(count, 1, 1)
    if what == "refresh":
        F = Q * torch.linspace(1, 0.1, rows, device=device)
        hows = {"householder": by_householder, "cholesky": by_cholesky}
        return {name: FullPrecision()(partial(refresh, F, Q, strength=1e-2, how=how)) for name, how in hows.items()}
    # A generator of its own: the training's draws are none of ours.
    X = torch.rand(size, generator=torch.Generator(device).manual_seed(0), device=device)
    if what == "polar":
        products = {"fp32": None, "fp16": torch.float16}
        return {name: FullPrecision()(partial(polar, X, precision=dtype)) for name, dtype in products.items()}
    return {"torch": partial(torch.bmm, Q, X), "tf32": Rounded()(partial(torch.bmm, Q, X))}
