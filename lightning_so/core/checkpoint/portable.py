"""Portable state: plain tensors and numbers, keyed by the parameters' names, all checked before any is loaded."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_so.comm import spread
from lightning_so.core.checkpoint.header import FORMAT, check_header
from lightning_so.core.schedule.units import _unit_key
from lightning_so.core.solves import flight as share
from lightning_so.core.stacks.stack import named_tensors
from lightning_so.core.statistics.windows import everywhere
from lightning_so.errors import StateError
from lightning_so.linalg.result import Result

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def state_dict(engine: "Engine") -> dict[str, Any]:
    """Everything that resuming needs, safe for `torch.load(weights_only=True)`.

    A collective where curvature is at its owners (methods that observe rows, on several ranks; sharded parameters):
    call it on all.

    Args:
        engine: The engine, between steps.

    Returns:
        Copies: a later step does not change them.
    """
    tensors = gathered(engine)
    blocks = {name: {**facts, "tensors": tensors[name]} for name, facts in block_facts(engine).items()}
    schedule = engine.schedule
    units = {_unit_key(engine, number): schedule.history(number) for number in range(len(schedule.units))}
    return {
        "format": FORMAT,
        "method": engine.plan.method,
        "blocks": blocks,
        "units": units,
        "flights": _flights(engine),
        "origin": schedule.origin,
        "placed": schedule.placed,
        "report": engine.report.portable(),
    }


def load_state_dict(engine: "Engine", state: dict[str, Any]) -> None:
    """Load what `state_dict` gave, after checking all of it.

    Args:
        engine: An engine of the same model, method and optimizer class.
        state: The state.

    Raises:
        StateError: If format, method, names or shapes differ; nothing is changed then.
    """
    check_header(engine, state)
    check_blocks(engine, state, block_tensors(engine))
    load_blocks(engine, state)


def load_blocks(engine: "Engine", state: dict[str, Any]) -> None:
    """Load a state that was checked."""
    take_over(engine, state)
    load_report(engine, state["report"])
    engine.schedule.origin = state["origin"]
    if state["placed"]:  # Else what is due is still to move to the slots of the first packing.
        engine.schedule.place(state["placed"])


def check_blocks(engine: "Engine", state: dict[str, Any], mine: dict[str, dict[str, Tensor]]) -> None:
    """Refuse a state whose blocks, tensors or units are not those of this run.

    Args:
        engine: The engine.
        state: The state.
        mine: The tensors that are expected, by block and name.

    Raises:
        StateError: If names or shapes differ.
    """
    _compare("blocks", set(state["blocks"]), set(mine))
    for name, tensors in mine.items():
        theirs = state["blocks"][name]["tensors"]
        _compare(f"tensors of {name}", set(theirs), set(tensors))
        wrong = {
            key: (tuple(theirs[key].shape), tuple(value.shape))
            for key, value in tensors.items()
            if theirs[key].shape != value.shape
        }
        if wrong:
            text = ", ".join(f"{key}: state {a}, model {b}" for key, (a, b) in wrong.items())
            raise StateError(f"{name} has other shapes: {text}. The model or the method's cap= changed.")
    numbers = range(len(engine.schedule.units))
    _compare("units", set(state["units"]), {_unit_key(engine, number) for number in numbers})


def take_over(engine: "Engine", state: dict[str, Any]) -> None:
    """Load the blocks and units that the engine and a state of the same method have in common, unchecked."""
    for index, stack in enumerate(engine.stacks):
        for row, block in enumerate(stack.blocks):
            if block.name in state["blocks"]:
                engine.warm[index][row] = bool(state["blocks"][block.name]["warm"])
                engine.proof.counts[index][row] = list(state["blocks"][block.name]["work"])
    for name, tensors in block_tensors(engine).items():
        if name in state["blocks"]:
            saved = state["blocks"][name]["tensors"]
            for key in saved.keys() & tensors.keys():
                tensors[key].copy_(saved[key])  # nothing happens to tensors on "meta", of blocks that others own
    for number in range(len(engine.schedule.units)):
        if (key := _unit_key(engine, number)) in state["units"]:
            engine.schedule.recall(number, state["units"][key])
    engine.flights = [_recalled(engine, flight) for flight in state["flights"]]
    engine.regroup()


def _flights(engine: "Engine") -> list[dict[str, Any]]:
    """Solves that have not been swapped in: when they will be, and by unit what they are; waits for them."""
    found = []
    for flight in engine.flights:
        results = {
            _unit_key(engine, number): {
                "value": result.value.clone(),
                "order": None if result.order is None else result.order.clone(),
                "ok": result.ok,
                "attempts": result.attempts,
            }
            for number, result in zip(flight.due, share.complete(engine, flight), strict=True)
        }
        found.append({"lands": flight.lands, "results": results})
    return found


def _recalled(engine: "Engine", state: dict[str, Any]) -> share.Flight:
    """A flight of `_flights`, of the units that are here, in the order in which they were solved."""
    numbers, results = [], []
    known = {_unit_key(engine, number): number for number in range(len(engine.schedule.units))}
    for key, saved in state["results"].items():
        if key in known:
            stack = engine.stacks[engine.schedule.units[known[key]].stack]
            order = None if saved["order"] is None else saved["order"].to(stack.device)
            numbers.append(known[key])
            results.append(Result(saved["value"].to(stack.device, stack.dtype), saved["ok"], order, saved["attempts"]))
    return share.Flight(state["lands"], numbers, results)


def load_report(engine: "Engine", counts: dict[str, Any]) -> None:
    """Go on counting from a saved report."""
    for name, value in counts.items():
        setattr(engine.report, name, value)
    engine.report.coverage = engine.plan.coverage
    engine.guard.withheld = engine.report.withheld


def block_tensors(engine: "Engine") -> dict[str, dict[str, Tensor]]:
    """Every block's tensors by name: views of the live state, not copies."""
    return {
        block.name: {name: tensor[row] for name, tensor in named_tensors(stack)}
        for stack in engine.stacks
        for row, block in enumerate(stack.blocks)
    }


def gathered(engine: "Engine") -> dict[str, dict[str, Tensor]]:
    """Copies of every block's tensors by name, on every rank: a collective where they are at their owners."""
    everywhere(engine)
    found = {name: dict(tensors) for name, tensors in block_tensors(engine).items()}
    if not engine.layout.split:
        return {name: {key: tensor.clone() for key, tensor in tensors.items()} for name, tensors in found.items()}
    blocks = sorted(engine.plan.blocks, key=lambda block: block.position)
    owned = [[found[block.name] for block in blocks if block.owner == rank] for rank in range(engine.comm.ranks)]
    for tensors, copies in zip(owned, spread(engine.comm, [_flat(some) for some in owned]), strict=True):
        at = iter(copies)
        for of_block in tensors:
            of_block.update({key: next(at) for key in of_block})
    return found


def _flat(tensors: list[dict[str, Tensor]]) -> list[Tensor]:
    return [tensor for of_block in tensors for tensor in of_block.values()]


def block_facts(engine: "Engine") -> dict[str, dict[str, Any]]:
    """By name, whether each block rotates and what was done with it."""
    facts = {}
    for index, stack in enumerate(engine.stacks):
        counts = engine.proof.of(index, engine.batches[index])
        for row, block in enumerate(stack.blocks):
            facts[block.name] = {"warm": engine.warm[index][row], "work": counts[row]}
    return facts


def _compare(what: str, theirs: set[str], mine: set[str]) -> None:
    if theirs != mine:
        raise StateError(
            f"{what} differ. Only in the state: {sorted(theirs - mine)[:5]}; only in this run: "
            f"{sorted(mine - theirs)[:5]}. "
            f"The state is of another model, route or method."
        )
