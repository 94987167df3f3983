"""How much curvature a checkpoint carries: `full`, `compact` or `rebuild`."""

from typing import Any

from torch import Tensor

from lightning_so.core.assembly import Parts
from lightning_so.core.checkpoint import exact_moments, ranks_apart, waiting
from lightning_so.core.checkpoint.header import check_header
from lightning_so.core.checkpoint.portable import (
    FORMAT,
    as_kept,
    check_blocks,
    load_blocks,
    load_facts,
    load_state_dict,
    state_dict,
)
from lightning_so.core.checkpoint.resting import forget_stale
from lightning_so.core.solves import basis
from lightning_so.core.stacks.stack import Stack
from lightning_so.linalg.triangle import compact

KINDS = ("full", "compact", "rebuild")


def write(parts: Parts, kind: str) -> dict[str, Any]:
    """The state that rides in a checkpoint file, beside the optimizer's own in plain coordinates.

    Args:
        parts: Those of an engine, between steps.
        kind: `full`: factors, bases and exact moments; a resumed run equals one that did not stop, bit for bit.
            `compact`: triangles of the factors alone; bases are found again by eigendecomposition and the second
            moments start from the factors, so that blocks go on rotating, but not bit for bit.
            `rebuild`: no curvature at all; blocks start cold.

    Returns:
        Plain tensors and numbers.
    """
    if kind == "rebuild":
        state = {"format": FORMAT, "method": parts.plan.method, "report": parts.report.portable()}
        state["ways"], state["slopes"] = parts.chosen.portable(), waiting.written(parts, exact=False)
    else:
        forget_stale(parts)
        state = state_dict(parts)
        if kind == "full":
            state["moments"] = exact_moments.moments(parts)
        else:
            state["flights"], state["unread"] = [], {}  # They turn bases that will not be there.
            for name, factors in _factors(parts.stacks).items():
                tensors = state["blocks"][name]["tensors"]
                state["blocks"][name]["tensors"] = {key: compact(tensors[key]) for key in factors}
            state["slopes"] = waiting.written(parts, exact=False)
    state = {**state, "kind": kind}
    return state if kind == "rebuild" else ranks_apart.together(parts, state)


def read(parts: Parts, state: dict[str, Any], *, cold: bool = False) -> None:
    """Load what `write` gave, of any kind, after the optimizer has loaded its own.

    Args:
        parts: Those of an parts.
        state: The state.
        cold: Whether a state that fits other ranks or another sharding alone is to be read as of kind `rebuild`.

    Raises:
        StateError: If it is not of this method, model and format, or incomplete.
    """
    check_header(state, FORMAT, parts.plan.method)
    state = ranks_apart.own(parts, state, cold=cold)
    with ranks_apart.refused_together(parts.host):
        _load(parts, state)


def _load(parts: Parts, state: dict[str, Any]) -> None:
    """Load a state of any kind, which is this rank's."""
    if state["kind"] == "rebuild":
        load_facts(parts, state)
        waiting.recall(parts, state.get("slopes"))
        parts.units.schedule.restart(parts.report.step)
        if parts.overhead is not None:
            parts.overhead.load_state_dict(None, parts.report.step)
    elif state["kind"] == "compact":
        factors = _factors(parts.stacks)
        state = as_kept(state, factors)
        check_blocks(parts.units, state, factors)
        load_blocks(parts, state)
        basis.settle(parts.landing)
    else:
        load_state_dict(parts, state)
        exact_moments.restore_moments(parts, state.get("moments", {}))


def _factors(stacks: list[Stack]) -> dict[str, dict[str, Tensor]]:
    """Every block's factors by name: views of the live state; none for a method without bases."""
    found = {}
    for stack in stacks:
        method = stack.solver
        for row, block in enumerate(stack.blocks):
            factors = method.factors(stack.stats) if method else ()
            found[block.name] = {name: tensor[row] for name, tensor in factors}
    return found
