"""Stacks with all that they need: an owner where parameters are sharded, room for weights, statistics, timed units.

Owners balance the cost of solves and of every step over ranks.
"""

from typing import Any

from lightning_so.actions.moments import Base
from lightning_so.comm.access.whole import Access
from lightning_so.contract.block import Block
from lightning_so.core.stacks.stack import stack_blocks
from lightning_so.errors import ConfigError


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
