"""How much curvature a checkpoint carries: `full`, `compact` or `rebuild`."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_so.core.checkpoint import exact_moments, ranks_apart
from lightning_so.core.checkpoint.header import FORMAT, check_header
from lightning_so.core.checkpoint.portable import check_blocks, load_blocks, load_report, load_state_dict, state_dict
from lightning_so.core.solves import basis
from lightning_so.core.stacks.stack import solver
from lightning_so.linalg.triangle import compact, expanded

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


KINDS = ("full", "compact", "rebuild")


def write(engine: "Engine", kind: str) -> dict[str, Any]:
    """The state that rides in a checkpoint file, beside the optimizer's own in plain coordinates.

    Args:
        engine: The engine, between steps.
        kind: `full`: factors, bases and exact moments; a resumed run equals one that did not stop, bit for bit.
            `compact`: triangles of the factors alone; bases are found again by eigendecomposition and the second
            moments start from the factors, so that blocks go on rotating, but not bit for bit.
            `rebuild`: no curvature at all; blocks start cold.

    Returns:
        Plain tensors and numbers.
    """
    if kind == "rebuild":
        state = {"format": FORMAT, "method": engine.plan.method, "report": engine.report.portable()}
    else:
        state = state_dict(engine)
        if kind == "full":
            state["moments"] = exact_moments.moments(engine)
        else:
            state["flights"] = []  # They turn bases that will not be there.
            for name, factors in _factors(engine).items():
                tensors = state["blocks"][name]["tensors"]
                state["blocks"][name]["tensors"] = {key: compact(tensors[key]) for key in factors}
    state = {**state, "kind": kind}
    return state if kind == "rebuild" else ranks_apart.together(engine, state)


def read(engine: "Engine", state: dict[str, Any], *, cold: bool = False) -> None:
    """Load what `write` gave, of any kind, after the optimizer has loaded its own.

    Args:
        engine: The engine.
        state: The state.
        cold: Whether a state that fits other ranks or another sharding alone is to be read as of kind `rebuild`.

    Raises:
        StateError: If it is not of this method, model and format, or incomplete.
    """
    check_header(engine, state)
    state = ranks_apart.own(engine, state, cold=cold)
    with ranks_apart.refused_together(engine):
        _load(engine, state)


def _load(engine: "Engine", state: dict[str, Any]) -> None:
    """Load a state of any kind, which is this rank's."""
    if state["kind"] == "rebuild":
        load_report(engine, state["report"])
        engine.schedule.restart(engine.report.step)
    elif state["kind"] == "compact":
        check_blocks(engine, state, {n: {k: compact(t) for k, t in ts.items()} for n, ts in _factors(engine).items()})
        blocks = dict(state["blocks"])
        for name, tensors in _factors(engine).items():
            packed = blocks[name]["tensors"]
            blocks[name] = {
                **blocks[name],
                "tensors": {k: expanded(packed[k], tensor) for k, tensor in tensors.items()},
            }
        load_blocks(engine, {**state, "blocks": blocks})
        basis.settle(engine)
    else:
        load_state_dict(engine, state)
        exact_moments.restore_moments(engine, state.get("moments", {}))


def _factors(engine: "Engine") -> dict[str, dict[str, Tensor]]:
    """Every block's factors by name: views of the live state; none for a method without bases."""
    found = {}
    for stack in engine.stacks:
        method = solver(stack)
        for row, block in enumerate(stack.blocks):
            factors = method.factors(stack.stats) if method else ()
            found[block.name] = {name: tensor[row] for name, tensor in factors}
    return found
