"""Who owns which block where parameters are sharded, and which call of the optimizer's step updates it.

Owners balance the cost of solves and of every step over ranks.
"""

from collections.abc import Iterable, Mapping
from heapq import heapreplace

from lightning_so.comm import Access
from lightning_so.contract.block import Block
from lightning_so.contract.method import Method
from lightning_so.core.host import Host
from lightning_so.core.stacks.stack import stack_blocks
from lightning_so.errors import ConfigError


def number_calls(blocks: Iterable[Block], access: Access) -> None:
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


def appoint(assigned: Mapping[Block, Method], host: Host) -> None:
    """Give every block an owner: the dearest first, each to the rank that has least so far.

    Args:
        assigned: The blocks, in the plan's order, changed in place; and the method of each.
        host: The training.
    """
    costs = dict[Block, float]()
    for stack in stack_blocks(assigned, host):
        method = stack.method
        for block in stack.blocks:
            costs[block] = method.step_cost(stack, stack.action(host, block, True))
        for unit in method.units(0, stack):
            costs[stack.blocks[unit.row]] += unit.cost / method.pace()[0]
    loads = [(0.0, rank) for rank in range(host.team.ranks)]  # A heap: of equal loads the lowest rank comes first.
    for block in sorted(assigned, key=lambda block: (-costs[block], block.position)):
        load, block.owner = loads[0]
        heapreplace(loads, (load + costs[block], block.owner))
