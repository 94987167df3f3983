"""Portable state: plain tensors and numbers, keyed by the parameters' names, all checked before any is loaded."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from lightning_so.comm import replicated_tensors
from lightning_so.contract.block import parameter_of
from lightning_so.core.assembly import Parts, compute
from lightning_so.core.checkpoint import waiting
from lightning_so.core.checkpoint.header import check_header
from lightning_so.core.schedule.schedule import Rung
from lightning_so.core.schedule.units import Units
from lightning_so.core.solves import swap
from lightning_so.core.solves.flight import Batch, Flight, complete, wait
from lightning_so.core.stacks.stack import Stack
from lightning_so.core.statistics.windows import share_factors
from lightning_so.errors import StateError
from lightning_so.linalg.packed import fitted
from lightning_so.linalg.result import Result, Solved

#: Of these states; raised when a file of the last one cannot be read.
FORMAT = 4


def state_dict(parts: Parts) -> dict[str, Any]:
    """Everything that resuming needs, safe for `torch.load(weights_only=True)`.

    A collective where curvature is at its owners (methods that observe rows, on several ranks; sharded parameters;
    `Memory(share=0)`): call it on all.

    Args:
        parts: Those of an engine, between steps.

    Returns:
        Copies: a later step does not change them.
    """
    tensors = gathered(parts)
    blocks = {name: {**facts, "tensors": tensors[name]} for name, facts in block_facts(parts).items()}
    units, schedule = parts.units, parts.units.schedule
    return {
        "format": FORMAT,
        "method": parts.plan.method,
        "blocks": blocks,
        "units": {units.key(number): schedule.history(number) for number in range(len(units))},
        "flights": _flights(parts),
        "unread": _unread(parts),
        "slopes": waiting.written(parts),
        "origin": schedule.origin,
        "placed": schedule.placed,
        "report": parts.report.portable(),
        **({"frozen": sorted(parts.plan.frozen)} if parts.plan.frozen else {}),
        **({} if parts.overhead is None else {"overhead": parts.overhead.state_dict()}),
        **({} if parts.balance is None else {"balance": parts.balance.state_dict()}),
        "ways": parts.chosen.portable(),
    }


def load_state_dict(parts: Parts, state: dict[str, Any]) -> None:
    """Load what `state_dict` gave, after checking all of it.

    Args:
        parts: Those of an engine of the same model, method and optimizer class.
        state: The state.

    Raises:
        StateError: If format, method, names or shapes differ; nothing is changed then.
    """
    check_header(state, FORMAT, parts.plan.method)
    mine = block_tensors(parts.stacks)
    state = as_kept(state, mine)
    check_blocks(parts.units, state, mine)
    load_blocks(parts, state)


def as_kept(state: dict[str, Any], mine: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """A state whose symmetric matrices are whole, triangles or strips as this run keeps them, see `Memory`.

    Args:
        state: The state.
        mine: The tensors that are expected, by block and name.

    Returns:
        The state; what this run does not know, or what fits in no way, is as it was.
    """
    blocks = {
        name: {**saved, "tensors": {k: _fitted(t, mine.get(name, {}).get(k)) for k, t in saved["tensors"].items()}}
        for name, saved in state["blocks"].items()
    }
    return {**state, "blocks": blocks}


def _fitted(saved: Tensor, like: Tensor | None) -> Tensor:
    return saved if like is None else fitted(saved, like)


def load_blocks(parts: Parts, state: dict[str, Any]) -> None:
    """Load a state that was checked."""
    take_over(parts, state)
    load_facts(parts, state)
    parts.units.schedule.origin = state["origin"]
    if parts.overhead is not None:
        parts.overhead.load_state_dict(state.get("overhead"), parts.report.step)
    if state["placed"]:
        parts.units.schedule.place(state["placed"])
    else:
        parts.units.schedule.unplace()  # What is due is still to move to the slots of the first packing.


def check_blocks(units: Units, state: dict[str, Any], mine: dict[str, dict[str, Tensor]]) -> None:
    """Refuse a state whose blocks, tensors or units are not those of this run.

    Args:
        units: The units of this run.
        state: The state.
        mine: The tensors that are expected, by block and name.

    Raises:
        StateError: If names or shapes differ.
    """
    _compare_parts(set(state["blocks"]), set(mine))
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
    flying = {key: saved["value"].shape for flight in state["flights"] for key, saved in flight["results"].items()}
    for unit, key in ((units[number], units.key(number)) for number in range(len(units))):
        if key in flying and flying[key] != unit.shape:
            raise StateError(
                f"{key} is solved and not in use yet (lag=1), as triangles are kept in one run and not in the other: "
                "resume with memory= as it was."
            )
    _compare("units", set(state["units"]), {units.key(number) for number in range(len(units))})


def take_over(parts: Parts, state: dict[str, Any]) -> None:
    """Load the blocks and units that parts and a state of the same method have in common, unchecked."""
    wait(parts.flights)
    parts.roster.regroup_all()  # What is counted so far is forgotten with it.
    for index, stack in enumerate(parts.stacks):
        for row, block in enumerate(stack.blocks):
            if block.name in state["blocks"]:
                saved = state["blocks"][block.name]
                parts.roster.recall(index, row, warm=bool(saved["warm"]), done=saved["work"])
    for name, tensors in block_tensors(parts.stacks).items():
        if name in state["blocks"]:
            saved = state["blocks"][name]["tensors"]
            for key in saved.keys() & tensors.keys():
                tensors[key].copy_(saved[key])  # nothing happens to tensors on "meta", of blocks that others own
    for number in range(len(parts.units)):
        if (key := parts.units.key(number)) in state["units"]:
            parts.units.schedule.recall(number, state["units"][key])
    parts.roster.foreign = False
    _recall_unread(parts, state.get("unread", {}))
    waiting.recall(parts, state.get("slopes"))
    parts.flights[:] = [_recalled(parts.units, flight) for flight in state["flights"]]
    parts.roster.regroup_all()


def _flights(parts: Parts) -> list[dict[str, Any]]:
    """Solves that have not been swapped in: when they will be, and by unit what they are; waits for them."""
    found = []
    for flight in parts.flights:
        results = {}
        for batch in complete(flight, parts.units, parts.host.team):
            solved, good = batch.solved, batch.solved.good.tolist()
            for at, number in enumerate(batch.numbers):
                order = None if solved.order is None else solved.order[at].clone()
                saved = {"value": solved.value[at].clone(), "order": order, "ok": good[at], "rung": int(batch.rung)}
                results[parts.units.key(number)] = saved
        found.append({"lands": flight.lands, "results": results})
    return found


def _recalled(units: Units, state: dict[str, Any]) -> Flight:
    """A flight of `_flights`, of the units that are here."""
    batches = []
    known = {units.key(number): number for number in range(len(units))}
    for key, saved in state["results"].items():
        if key in known:
            stack = units.stack(known[key])
            order = None if saved["order"] is None else saved["order"].to(stack.device)
            result = Result(saved["value"].to(stack.device, stack.dtype), saved["ok"], order)
            rung = Rung(saved.get("rung", saved.get("afresh", Rung.PLAIN)))  # as files of before have it
            batches.append(Batch([known[key]], Solved.of([result]), rung))
    return Flight(state["lands"], batches)


def _unread(parts: Parts) -> dict[str, list[int]]:
    """Verdicts that wait for the next step, by unit: whether it is good, and its rung. Nothing is judged."""
    found = {}
    good = swap.apart(parts.unread, swap.read(parts.unread))
    for some, flags in zip(parts.unread, good, strict=True):
        found |= {parts.units.key(n): [ok, int(some.rung)] for n, ok in zip(some.numbers, flags, strict=True)}
    return found


def _recall_unread(parts: Parts, saved: dict[str, list[int]]) -> None:
    """Have the next step learn of verdicts of `_unread`, of the units that are here."""
    parts.unread.clear()
    for number in range(len(parts.units)):
        if (found := saved.get(parts.units.key(number))) is not None:
            good = torch.tensor([bool(found[0])], device=parts.units.stack(number).device)
            parts.unread.append(swap.Unread([number], good, Rung(found[1])))


def load_facts(parts: Parts, state: dict[str, Any]) -> None:
    """Go on from a saved report, by whom and in which ways is solved; what is covered is a fact of this run."""
    for name, value in state["report"].items():
        setattr(parts.report, name, value)
    parts.report.coverage = parts.plan.coverage
    if parts.balance is not None:
        parts.balance.load_state_dict(state.get("balance"))
    if "ways" in state:  # not in files of before
        compute(parts, parts.chosen.or_those_of(state["ways"]))


def block_tensors(stacks: list[Stack]) -> dict[str, dict[str, Tensor]]:
    """Every block's tensors by name: views of the live state, not copies."""
    return {
        block.name: {name: tensor[row] for name, tensor in stack.tensors()}
        for stack in stacks
        for row, block in enumerate(stack.blocks)
    }


def gathered(parts: Parts) -> dict[str, dict[str, Tensor]]:
    """Copies of every block's tensors by name, on every rank: a collective where they are at their owners."""
    team = parts.host.team
    share_factors(parts.units, team)
    found = {name: dict(tensors) for name, tensors in block_tensors(parts.stacks).items()}
    blocks = sorted(parts.plan.blocks, key=lambda block: block.position)
    for of_block in (found[block.name] for block in blocks if block.owner is None):
        of_block.update({key: tensor.clone() for key, tensor in of_block.items()})
    owned = [[found[block.name] for block in blocks if block.owner == rank] for rank in range(team.ranks)]
    for tensors, copies in zip(owned, replicated_tensors(team, [_flat(some) for some in owned]), strict=True):
        at = iter(copies)
        for of_block in tensors:
            of_block.update({key: next(at) for key in of_block})
    return found


def _flat(tensors: list[dict[str, Tensor]]) -> list[Tensor]:
    return [tensor for of_block in tensors for tensor in of_block.values()]


def block_facts(parts: Parts) -> dict[str, dict[str, Any]]:
    """By name, whether each block rotates and what was done with it."""
    facts = {}
    for index, stack in enumerate(parts.stacks):
        counts = parts.roster.done(index)
        for row, block in enumerate(stack.blocks):
            rests = parts.roster.away.get((index, row)) is not None
            facts[block.name] = {"warm": parts.roster.warm[index][row] or rests, "work": counts[row]}
    return facts


def _compare_parts(theirs: set[str], mine: set[str]) -> None:
    """Refuse a state that takes a parameter for another number of matrices than this run."""
    before, now = _matrices(theirs), _matrices(mine)
    for name in sorted(before.keys() & now.keys()):
        if before[name] != now[name]:
            way = (
                "leave it out of route's 'split'; if it has three dimensions or more, which versions without stacked "
                f"matrices folded into one, give route={{'split': {{{name!r}: 1}}}}"
                if before[name] == 1
                else f"give route={{'split': {{{name!r}: {before[name]}}}}}"
            )
            raise StateError(
                f"{name}: matrices in the state {before[name]}, in this run {now[name]}. To go on as it was, {way}."
            )


def _matrices(blocks: set[str]) -> Counter[str]:
    """How many blocks each parameter is, by its name."""
    return Counter(map(parameter_of, blocks))


def _compare(what: str, theirs: set[str], mine: set[str]) -> None:
    if theirs != mine:
        raise StateError(
            f"{what} differ. Only in the state: {sorted(theirs - mine)[:5]}; only in this run: "
            f"{sorted(mine - theirs)[:5]}. "
            f"The state is of another model, route or method; route={{'base': [...]}} leaves alone what it lacks."
        )
