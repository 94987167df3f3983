"""What can be computed in one of several ways, at the size at which a training has most of it."""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from lightning_so.contract.method import Action
from lightning_so.core.host import Host
from lightning_so.core.measure import medians, waiting_clock
from lightning_so.core.schedule.units import Units
from lightning_so.linalg.basis import by_cholesky, by_householder, refresh
from lightning_so.linalg.padding import Frames, Size, joined
from lightning_so.linalg.polar import PolarFactor, polar
from lightning_so.linalg.precision import FullPrecision, Rounded

#: Sizes of what is done: of padding several, of all else one.
Sizes = tuple[Size, ...]
Work = Callable[[], object]
#: Most matrices of a batch that is timed, where all of them are of one size.
MOST = 4


def sizes(units: Units, host: Host) -> dict[str, Sizes]:
    """What a training has of each, by field of `Ways`; nothing of what it does not compute, or not in float32.

    Args:
        units: Its units and stacks.
        host: The training.

    Returns:
        Number, rows and columns of the kind of matrices that cost most together; of padding, of all that are padded by
        this rank.
    """
    costs: dict[str, dict[Size, float]] = {"refresh": {}, "polar": {}, "rotation": {}}
    bent = list[Size]()

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
            if stack.orthogonaliser is not None and stack.here:
                bent.append((count, rows, columns))
        if stack.rotates and side:
            add("rotation", count, side, columns, count * rows * columns * side)
    found = {what: (max(some, key=lambda size: some[size]),) for what, some in costs.items() if some}
    groups = [group for group in joined(tuple(bent), PolarFactor(), torch.float32) if len(group) > 1]
    return {**found, "padding": tuple(bent[number] for group in groups for number in group)} if groups else found


@cache
def timed(what: str, found: Sizes, device: torch.device) -> dict[str, float]:
    """Median seconds of each way in which a device can compute something; once in a process."""
    return medians(ways_of(what, found, device), waiting_clock(device))


def ways_of(what: str, found: Sizes, device: torch.device) -> dict[str, Work]:
    """The ways in which something can be computed.

    Args:
        what: A field of `Ways`.
        found: See `sizes`.
        device: Where.

    Returns:
        By its name in `Ways`, what does it once.
    """
    count, rows, _ = found[0]
    Q = torch.eye(rows, device=device).repeat(count, 1, 1)
    if what == "refresh":
        F = Q * torch.linspace(1, 0.1, rows, device=device)
        hows = {"householder": by_householder, "cholesky": by_cholesky}
        return {name: FullPrecision()(partial(refresh, F, Q, strength=1e-2, how=how)) for name, how in hows.items()}
    # A generator of its own: the training's draws are none of ours.
    generator = torch.Generator(device).manual_seed(0)
    Xs = [torch.rand(size, generator=generator, device=device) for size in found]
    if what == "polar":
        products = {"fp32": None, "fp16": torch.float16}
        return {name: FullPrecision()(partial(polar, Xs[0], precision=dtype)) for name, dtype in products.items()}
    if what == "padding":
        return {name: FullPrecision()(partial(way, Xs)) for name, way in (("apart", _apart), ("padded", _padded))}
    return {"torch": partial(torch.bmm, Q, Xs[0]), "tf32": Rounded()(partial(torch.bmm, Q, Xs[0]))}


def _apart(Xs: list[Tensor]) -> list[Tensor]:
    """Polar factors, shape by shape."""
    return [polar(X).contiguous() for X in Xs]


def _padded(Xs: list[Tensor]) -> list[Tensor]:
    """The same in fewer calls, the way there and back included; in another order."""
    found, made = tuple((len(X), X.shape[1], X.shape[2]) for X in Xs), list[Tensor]()
    for group in joined(found, PolarFactor(), Xs[0].dtype):
        frames = Frames(tuple(found[number] for number in group))
        batch = frames.fill(Xs[0].new_empty(frames.shape), [Xs[number] for number in group])
        made += [X.contiguous() for X in frames.views(polar(batch))]
    return made
