"""Parts for the parameters and the optimizer that are there now: what is known of tensors that stay goes on."""

from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor

from lightning_so.contract.block import Block, parameter_of
from lightning_so.core.assembly import Parts, assemble
from lightning_so.core.checkpoint.portable import state_dict, take_over
from lightning_so.core.host import Host
from lightning_so.core.matrices.matrices import MomentChange
from lightning_so.core.options import Options
from lightning_so.core.solves import basis
from lightning_so.errors import TrustError


def fits(parts: Parts, host: Host, state: dict[str, Any] | None = None) -> bool:
    """Whether parts are those of a host, whose optimizer has the same tensors in the same groups.

    Args:
        parts: Those of an engine.
        host: The training as it is now.
        state: One that will be loaded, of whose blocks they must be too.

    Returns:
        False also where a parameter is trained that was frozen.
    """
    params = host.params
    return (
        parts.host is host
        and parts.sizes == host.sizes
        and len(parts.params) == len(params)
        and all(map(is_, parts.params, params))
        and _left_out(parts, state).keys() == parts.plan.frozen.keys()
    )


def _left_out(parts: Parts, state: dict[str, Any] | None) -> dict[str, Tensor]:
    """Frozen parameters that stay out, or are out in a state that will be loaded.

    What once was a block stays one. But a cold one, of which a state says that it was out, waits with it: whoever
    resumes may freeze it after the state was loaded.

    Args:
        parts: Those of an engine.
        state: The state, if there is one.

    Returns:
        Them by name.
    """
    out = parts.plan.frozen
    if state is None or "blocks" not in state:
        return {name: param for name, param in out.items() if not param.requires_grad}
    there, cold, warm = set(map(parameter_of, state["blocks"])), dict[str, Tensor](), set[str]()
    for index, stack in enumerate(parts.stacks):
        for row, block in enumerate(stack.blocks):
            cold[block.parameter] = block.param
            if parts.roster.warm[index][row]:
                warm.add(block.parameter)
    stay = {name: param for name, param in out.items() if name not in there}
    return stay | {name: cold[name] for name in state.get("frozen", ()) if name in cold.keys() - warm}


@torch.no_grad()
def reassembled(parts: Parts, host: Host, options: Options, state: dict[str, Any] | None = None) -> Parts:
    """Make parts anew, for tensors that were added, replaced or thawed, or for another optimizer: a collective.

    They go on computing in the same ways. Of blocks whose tensors stay all is kept, while the optimizer is the same or
    keeps its moments under the same names. What leaves takes plain moments with it. The interval starts from its
    smallest again, and new blocks start cold.

    Args:
        parts: Those so far, between steps; not used afterwards.
        host: The training as it is now.
        options: What was asked for.
        state: See `fits`.

    Returns:
        The new parts.

    Raises:
        ConfigError: If the new optimizer or the new tensors do not fit the method.
        TrustError: If rotated moments were given to another tensor.
    """
    known, out = {id(param) for param in parts.params}, [*_left_out(parts, state).values()]
    out += [param for param in host.params if id(param) not in known and not param.requires_grad]
    here = {id(param) for param in host.params} if host.optimizer is parts.host.optimizer else set[int]()
    here -= {id(param) for param in out}
    places = basis.places(parts.roster)
    leaving = [(i, row) for i, row in places if not all(id(p) in here for p in parts.stacks[i].blocks[row].params)]
    lost = _lost(parts, leaving)
    _make_plain(parts, leaving)
    for place in parts.roster.away:
        parts.roster.away[place] = None  # What is not rotated now is plain.
    old = state_dict(parts)
    new = assemble(host, options, parts.report, parts.chosen, out)
    for stack in new.stacks:
        for block in stack.blocks:
            _check_moved(block, host, lost)
    if host.base == parts.host.base:
        take_over(new, _of(old, _staying(parts, new)))
    if new.balance is not None:
        new.balance.load_state_dict(old.get("balance"))
    new.units.schedule.restart(parts.report.step)
    return new


def _make_plain(parts: Parts, leaving: list[tuple[int, int]]) -> None:
    """Take the moments of blocks out of their bases."""
    changes = []
    for index, row in leaving:
        stack, block = parts.stacks[index], parts.stacks[index].blocks[row]
        states = parts.host.states(block)
        changes.append(MomentChange.of_one(block, states, partial(basis.plain, stack, row, parts.host)))
    parts.matrices.change_moments(changes)
    basis.leave(parts.roster, leaving)


def _lost(parts: Parts, leaving: list[tuple[int, int]]) -> set[str]:
    """Names of blocks whose moments somebody has taken away."""
    blocks = [parts.stacks[index].blocks[row] for index, row in leaving]
    return {block.name for block in blocks if not parts.matrices.sharded and not any(parts.host.states(block))}


def _check_moved(block: Block, host: Host, lost: set[str]) -> None:
    if block.name in lost and any(host.states(block)):
        raise TrustError(
            f"{block.name} is another tensor than before, and was given the moments of the old one, which are in the "
            f"old one's rotated basis. Take moments from optimizer.state_dict(), which gives plain ones, before you "
            f"replace the tensor; or leave the new one without, and its block starts cold."
        )


def _staying(parts: Parts, new: Parts) -> set[str]:
    """Names of blocks that have the same tensors as before."""
    before = {block.name: block.params for stack in parts.stacks for block in stack.blocks}
    now = {block.name: block.params for stack in new.stacks for block in stack.blocks}
    return {
        name
        for name, params in now.items()
        if len(params) == len(before.get(name, ())) and all(map(is_, params, before[name]))
    }


def _of(state: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """A state of some of its blocks alone."""

    def kept(units: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in units.items() if key.rsplit(":", 2)[0] in names}

    return {
        **state,
        "blocks": {name: block for name, block in state["blocks"].items() if name in names},
        "slopes": state["slopes"] and {name: of for name, of in state["slopes"].items() if name in names},
        "units": kept(state["units"]),
        "unread": kept(state["unread"]),
        "flights": [
            {**flight, "results": results} for flight in state["flights"] if (results := kept(flight["results"]))
        ],
    }
