"""What checkpoint files hold: moments that the base optimizer alone can go on with, and the exact ones beside them.

While blocks rotate, the optimizer's moments are in rotated coordinates; loaded without the engine they fail nothing and
train badly. So files hold plain coordinates (the first moment exactly, the second by squared overlap), the exact
tensors ride in our own state, and a stamp in `param_groups` refuses a start that has lost that state.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_so.comm import filled
from lightning_so.core.assembly import Parts
from lightning_so.core.checkpoint.exact_moments import of_rotating
from lightning_so.core.checkpoint.resting import written
from lightning_so.core.checkpoint.stamp import MARK, STAMP
from lightning_so.core.host import Host
from lightning_so.core.matrices.matrices import MomentChange
from lightning_so.core.solves import basis
from lightning_so.core.stacks.stack import Stack


@dataclass(frozen=True)
class Leaving:
    """What going on without the engine would change in the next update of the rotating blocks.

    Attributes:
        cosine: Between the update from plain moments and the one from rotated moments, mean over blocks.
        length: Ratio of their lengths, mean over blocks.
    """

    cosine: float
    length: float


@contextmanager
def plainly(parts: Parts, *, alone: bool = False) -> Iterator[None]:
    """Put the optimizer's moments into plain coordinates inside the context; behind it they are as before, bit for bit.

    A collective where parameters are sharded.

    Args:
        parts: Those of an engine.
        alone: Whether to ask no other rank. Moments cannot leave a basis that is elsewhere: then first ones are zero,
            and second ones their mean, of which a rotation leaves the sum.
    """
    changes = of_rotating(parts.roster, parts.host, basis.plain)
    states = [state for change in changes for of_block in change.states for state in of_block]
    values = (value for state in states for value in state.values())
    held = [(value, value.clone()) for value in values if torch.is_tensor(value)]
    with torch.no_grad():
        if alone and parts.matrices.owned:
            for key, value in (item for state in states for item in state.items()):
                if key in (*parts.host.base.first, *parts.host.base.second) and value.numel():
                    value.fill_(0.0 if key in parts.host.base.first else value.mean())
        else:
            parts.matrices.change_moments(changes)
    try:
        yield
    finally:
        with torch.no_grad():
            for live, exact in held:
                live.copy_(exact)


def plain_optimizer_state(parts: Parts, state_dict: dict[str, Any], *, alone: bool = False) -> dict[str, Any]:
    """An optimizer's state dict as a file should hold it: see `plain_state`; its groups are stamped."""
    found = plain_state(parts, state_dict, alone=alone)
    if "param_groups" not in found:
        return found
    return {**found, "param_groups": [{**group, STAMP: MARK} for group in found["param_groups"]]}


@torch.no_grad()
def plain_state(parts: Parts, state_dict: dict[str, Any], *, alone: bool = False) -> dict[str, Any]:
    """An optimizer's state dict with plain moments; neither the live state nor the argument changes.

    A collective where parameters are sharded.

    Args:
        parts: Those of an engine.
        state_dict: What the strategy gave for the optimizer: by number or name; whole tensors, pieces, or, on ranks
            that write no file, nothing.
        alone: Whether to ask no other rank, where owners alone have bases. Without these rotated moments cannot be
            taken back: those of blocks that rotate start anew, as on the first step.

    Returns:
        The state dict with plain moments.
    """
    if parts.host.access.local:
        found = {}  # What the strategy collected was plain: see `collected`.
    elif alone and parts.matrices.owned:
        found = {param: None for _, _, block in basis.rotating(parts.roster) for param in block.params}
    else:
        found = plain_moments(parts)
    if "param_groups" not in state_dict:
        return state_dict
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    index_of = dict(zip(parts.host.params, numbers, strict=True))
    state = dict(state_dict["state"])
    for param, whole in found.items():
        if (index := index_of[param]) in state:
            new = whole if whole is not None else _first(state[index], parts.host.access.shape(param))
            state[index] = {**state[index], **{k: filled(state[index][k], v) for k, v in new.items()}}
    return {**state_dict, "state": state}


def plain_moments(parts: Parts) -> dict[Tensor, dict[str, Tensor] | None]:
    """By parameter of a block that rotates, copies of its whole moments in plain coordinates.

    Of a parameter that is several blocks some may rotate and others not: what those have is plain as it is.

    Args:
        parts: Those of an engine.

    Returns:
        The moments by key.
    """
    changes = of_rotating(parts.roster, parts.host, basis.plain)
    rotating = {block for change in changes for block in change.blocks}
    split = {block.param for block in rotating if block.part is not None}
    others = [block for block in parts.plan.blocks if block.param in split and block not in rotating]
    changes += [MomentChange.of_one(block, parts.host.states(block), lambda _: None) for block in others]
    found = dict[Tensor, dict[str, Tensor] | None]()
    pieces = dict[Tensor, dict[int, dict[str, Tensor]]]()
    blocks = [block for change in changes for block in change.blocks]
    for block, whole in zip(blocks, parts.matrices.whole(changes), strict=True):
        if block.part is None:
            found.update(zip(block.params, whole, strict=True))
        else:
            pieces.setdefault(block.param, {})[block.part.index] = whole[0]
    for param, of_parts in pieces.items():
        ordered, shape = [of_parts[index] for index in sorted(of_parts)], parts.host.access.shape(param)
        found[param] = {key: torch.cat([m[key].flatten() for m in ordered]).view(shape) for key in ordered[0]}
    return found


@torch.no_grad()
def collected(all_parts: Sequence[Parts], collect: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Let a strategy collect the optimizers' states; where ranks work apart, while the moments are plain.

    Args:
        all_parts: Those of the engines, one an optimizer.
        collect: Collects; a collective where parameters are sharded.

    Returns:
        What it gave, of plain moments copies.
    """
    apart = [parts for parts in all_parts if parts.host.access.local]
    if not apart:
        return collect()
    with ExitStack() as stack:
        for parts in apart:
            stack.enter_context(plainly(parts))
        found = collect()
        if "state" not in found:  # A rank that writes no file.
            return found
        return {**found, "state": {param: _copies(state) for param, state in found["state"].items()}}


def _copies(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if torch.is_tensor(value) else value for key, value in state.items()}


def _first(state: dict[str, Any], shape: torch.Size) -> dict[str, Tensor]:
    """The optimizer's state of a parameter as it is before the first step, in whole tensors."""
    tensors = {key: value for key, value in state.items() if torch.is_tensor(value)}
    # NAdam's product of momenta is a product of none; all else counts or sums from zero.
    return {key: torch.full(shape if value.ndim else (), float(key == "mu_product")) for key, value in tensors.items()}


@torch.no_grad()
def leaving(parts: Parts) -> Leaving | None:
    """What going on without the engine would change now: a collective where parameters are sharded.

    Args:
        parts: Those of an engine.

    Returns:
        The change; None if nothing rotates.
    """
    bumps = list[tuple[float, float]]()

    def measure(stack: Stack, row: int, host: Host, states: list[dict]) -> None:
        if all(states) and parts.matrices.answers(stack):
            plain = [{key: value.clone() for key, value in state.items()} for state in states]
            basis.plain(stack, row, host, plain)
            bumps.append(_bump(stack, row, host, states, plain))

    changes = written(parts, measure)
    if not changes:
        return None
    parts.matrices.change_moments([replace(change, states=_cloned(change.states)) for change in changes])
    device = parts.stacks[0].device
    sums = torch.tensor([*map(sum, zip(*bumps, strict=True)), len(bumps)] if bumps else [0.0] * 3, device=device)
    cosine, length, count = parts.matrices.answered(sums).tolist()
    return Leaving(cosine / count, length / count) if count else None


def _cloned(states: list[list[dict]]) -> list[list[dict]]:
    return [[{k: v.clone() for k, v in s.items() if torch.is_tensor(v)} for s in of_block] for of_block in states]


def _bump(stack: Stack, row: int, host: Host, rotated: list[dict], plain: list[dict]) -> tuple[float, float]:
    """Cosine and length ratio of m / sqrt(v) from plain moments against the one from rotated moments."""
    second = host.base.second[0]
    first = next((key for key in host.base.first if torch.is_tensor(plain[0].get(key))), None)

    def matrix(states: list[dict], key: str) -> Tensor:
        return torch.cat([state[key].to(stack.dtype).reshape(stack.shape[0], -1) for state in states], 1)

    def update(states: list[dict]) -> Tensor:
        v = matrix(states, second)
        m = torch.ones_like(v) if first is None else matrix(states, first)
        return m / v.sqrt().clamp_min(torch.finfo(v.dtype).tiny ** 0.5)

    there = stack.turning.turn(stack.stats, update(rotated)[None], [row], leave=True)[0].flatten()
    alone = update(plain).flatten()
    cosine = torch.nn.functional.cosine_similarity(there, alone, dim=0)
    return float(cosine), float(alone.norm() / there.norm().clamp_min(1e-30))
