"""Who alone has which block's curvature and works on it, and which call of the optimizer's step updates it.

Owners balance the cost of solves and of every step over ranks.
"""

from collections.abc import Iterable, Mapping
from heapq import heapreplace

from lightning_so.comm import Access
from lightning_so.contract.block import Block
from lightning_so.contract.method import Method
from lightning_so.core.host import Host
from lightning_so.core.plan.outlines import curvature_of, needed
from lightning_so.core.stacks.stack import STAGES, Stack, stack_blocks
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


def appoint(assigned: Mapping[Block, Method], host: Host, share: float = 1.0) -> None:
    """Give blocks their owners, the dearest first, each to the rank that has least so far.

    Where ranks have pieces of parameters every block has one; else those whose curvature not every rank is to have.

    Args:
        assigned: The blocks, in the plan's order, changed in place; and the method of each.
        host: The training.
        share: The share of the curvature that every rank has where parameters are whole, see `Memory`.
    """
    for block in assigned:
        block.owner = None
    if not host.access.sharded and (share == 1 or host.team.ranks == 1):
        return
    stacks = stack_blocks(assigned, host)
    kept = set[Block]() if host.access.sharded else _kept(stacks, host, share)
    costs = dict[Block, float]()
    for stack in stacks:
        method = stack.method
        for block in stack.blocks:
            costs[block] = method.step_cost(stack, stack.action(host, block, True))
        for unit in method.units(0, stack):
            costs[stack.blocks[unit.row]] += unit.cost / method.pace()[0]
    loads = [(0.0, rank) for rank in range(host.team.ranks)]  # A heap: of equal loads the lowest rank comes first.
    for block in sorted(assigned, key=lambda block: (-costs[block], block.position)):
        if block not in kept:
            load, block.owner = loads[0]
            heapreplace(loads, (load + costs[block], block.owner))


def _kept(stacks: Iterable[Stack], host: Host, share: float) -> set[Block]:
    """Choose the blocks whose curvature every rank has.

    What travels for a block is as large as its matrix, and its curvature as the squares of its sides: first come those
    with most traffic a byte, which are square or have little. What every rank needs, or has none of, costs no memory.

    Args:
        stacks: The stacks, before blocks have owners.
        host: The training.
        share: The most of their bytes that every rank has.

    Returns:
        The blocks.
    """
    kept, asked = set[Block](), list[tuple[float, Block, int]]()
    for stack in stacks:
        size = curvature_of(stack, host.base)
        if not size or needed(stack, host.base):
            kept.update(stack.blocks)
            continue
        for block in stack.blocks:
            trips = len(STAGES[stack.action(host, block, True)])
            asked.append((trips * block.rows * block.cols / size, block, size))
    room = share * sum(size for *_, size in asked)
    for _, block, size in sorted(asked, key=lambda each: (-each[0], each[1].position)):
        if size <= room:
            kept.add(block)
            room -= size
    return kept
