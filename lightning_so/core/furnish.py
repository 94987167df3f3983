"""Stacks with all that they need: an owner where parameters are sharded, room for weights, statistics, timed units.

Owners balance the cost of solves and of every step over ranks.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning_so.actions.moments import Base
from lightning_so.comm.access import Access
from lightning_so.core.block import Block, Stack, stack_blocks
from lightning_so.core.errors import ConfigError
from lightning_so.core.method import tapped
from lightning_so.core.schedule import Unit

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def furnished(engine: "Engine") -> list[Stack]:
    """The stacks of an engine's plan, with room for saved weights and empty statistics."""
    rank = engine.comm.rank if engine.layout.split else None
    number_calls(engine.plan.blocks, engine.access)
    if engine.layout.split:
        appoint(engine.plan.blocks, engine.access, engine.base, engine.groups, engine.comm.ranks)
    stacks = stack_blocks(engine.plan.blocks, engine.access, rank)
    for stack in stacks:
        engine.layout.furnish(stack)
        method = tapped(stack)
        stack.shared = stack.shared or (method is not None and method.everywhere(engine.base))
        stack.stats = stack.method.init(stack, engine.base)
    return stacks


def number_calls(blocks: list[Block], access: Access) -> None:
    """Say which call of the optimizer's step updates each block.

    Args:
        blocks: The blocks, changed in place.
        access: Where their numbers are.

    Raises:
        ConfigError: If the weight and the bias of a block are updated by different calls.
    """
    calls = access.calls()
    if calls is None:
        return
    number = {param: call for call, params in enumerate(calls) for param in params}
    for block in blocks:
        block.call, *others = {number[param] for param in block.params}
        if others:
            raise ConfigError(
                f"{block.name} and its bias are updated by calls {sorted([block.call, *others])} of the optimizer's "
                f"step: raise DeepSpeed's zero_optimization.sub_group_size (default 1e9), so that one updates both."
            )


def timed(stacks: list[Stack]) -> list[Unit]:
    """The units of stacks, with their methods' intervals and spreads, in the order of the plan."""
    # Ties of the schedule are broken by this order, so that when a unit is due does not depend on the world size.
    units = []
    for index, stack in enumerate(stacks):
        period, spread = stack.method.timing()
        found = stack.method.units(index, stack)
        units += [replace(unit, period=period, staggered=spread.staggered) for unit in found]
    return sorted(units, key=lambda unit: stacks[unit.stack].blocks[unit.row].position)


def appoint(blocks: list[Block], access: Access, base: Base, groups: list[dict[str, Any]], ranks: int) -> None:
    """Give every block an owner: the dearest first, each to the rank that has least so far.

    Args:
        blocks: The blocks, in the plan's order; changed in place.
        access: Where their numbers are.
        base: The optimizer's entry in the registry.
        groups: Its param groups.
        ranks: World size.
    """
    costs = dict[Block, float]()
    for stack in stack_blocks(blocks, access):
        method = stack.method
        for block in stack.blocks:
            costs[block] = method.work(stack, method.action(base, groups[block.group], block, True))
        for unit in method.units(0, stack):
            costs[stack.blocks[unit.row]] += unit.cost / method.timing()[0]
    loads = [0.0] * ranks
    for block in sorted(blocks, key=lambda block: (-costs[block], block.position)):
        block.owner = min(range(ranks), key=lambda rank: (loads[rank], rank))
        loads[block.owner] += costs[block]
