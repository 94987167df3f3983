"""Ranks that work apart (`sharding="local"`): each takes its rows of a weight for the matrix, on blocks of its own.

They agree on what must happen on all or on none: whether a step happens (`guard`), whether a state is refused. A state
is one of every rank, and fits those rows alone.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_so.core.assembly import Parts
from lightning_so.core.host import Host
from lightning_so.errors import StateError

# ---------------------------------------------------------------- states


def together(parts: Parts, state: dict[str, Any]) -> dict[str, Any]:
    """One state of all ranks: a collective where ranks work apart, else the state itself.

    Args:
        parts: Those of an engine.
        state: This rank's state.

    Returns:
        Of ranks that work apart, the bytes of every rank's, of replicas once; beside them what all have in common.
    """
    if not parts.host.access.local:
        return state
    buffer = io.BytesIO()
    torch.save({**state, "spans": _spans(parts)}, buffer)
    mine = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    sizes = parts.host.world.gather(torch.tensor([mine.numel()]).view(torch.uint8), [8] * parts.host.world.ranks)
    wires = parts.host.world.gather(mine, [int(size.clone().view(torch.int64)) for size in sizes])
    states = list[Tensor]()
    for wire in wires:
        # The file keeps equal tensors once if they are one.
        states.append(next((other for other in states if torch.equal(other, wire)), wire.clone()))
    common = {key: state[key] for key in ("format", "method", "report", "kind") if key in state}
    return {**common, "sharding": "local", "states": states}


def own(parts: Parts, state: dict[str, Any], *, cold: bool = False) -> dict[str, Any]:
    """This rank's part of a state.

    Args:
        parts: Those of an engine.
        state: What `together` gave, here or elsewhere.
        cold: Whether to start cold where there is none that fits.

    Returns:
        The part; of kind "rebuild" for a cold start.

    Raises:
        StateError: If it is of other rows, or of whole matrices where this run has rows, or the other way round.
    """
    if state.get("kind") == "rebuild" or (not parts.host.access.local and "states" not in state):
        return state
    found, reason = dict[str, Any](), _other(parts.host, state)
    if reason is None:
        buffer = io.BytesIO(state["states"][parts.host.world.rank].cpu().numpy().tobytes())
        found = torch.load(buffer, map_location="cpu", weights_only=True)
    if not parts.host.anywhere(reason is not None or found["spans"] != _spans(parts)):
        return found
    if cold:
        return {key: state[key] for key in ("format", "method", "report")} | {"kind": "rebuild"}
    reason = reason or "the state is of other rows of the weights: the mesh or the order of the ranks is another"
    raise StateError(
        f"{reason}. Go on as it was written; or with SecondOrder(state='rebuild'), which starts cold from the moments "
        "in the file."
    )


def _other(host: Host, state: dict[str, Any]) -> str | None:
    """How the ranks that wrote a state differ from those here, or None."""
    mine, theirs = ("local" if host.access.local else "exact"), state.get("sharding", "exact")
    if theirs != mine:
        here = f"sharding={mine!r}" if mine == "local" else "whole matrices (sharding='exact', or nothing is cut)"
        return f"the state was written with sharding={theirs!r}, this run has {here}"
    ranks = len(state["states"])
    if ranks != host.world.ranks:
        return f"the state is of sharding='local' on {ranks} ranks, this run has {host.world.ranks}"
    return None


def _spans(parts: Parts) -> dict[str, list[int]]:
    """By name, which numbers of a whole parameter are this rank's."""
    named = zip(parts.plan.rows, parts.host.params, strict=True)
    return {row.name: list(parts.host.access.span(param)) for row, param in named}


@contextmanager
def refused_together(host: Host) -> Iterator[None]:
    """Refuse a state on all ranks if the body refuses this rank's part on one: a collective where ranks work apart.

    Raises:
        StateError: If this rank refuses, or another.
    """
    failure = None
    try:
        yield
    except StateError as error:
        failure = error
    refused = host.anywhere(failure is not None)
    if failure is not None:
        raise failure
    if refused:
        raise StateError("another rank refuses its part of the state: see its message.")
