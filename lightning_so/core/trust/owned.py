"""Predicted bytes of all-gathers by which owners give what they have done, where gradients are whole everywhere.

Each is padded to the rank that gives most, so that every rank sends as much.
"""

from collections.abc import Iterable

from lightning_so.core.host import Host
from lightning_so.core.schedule.units import Units
from lightning_so.core.stacks.stack import STAGES


def results(units: Units, host: Host, *, warm: bool) -> list[int]:
    """Bytes that a rank sends of turned gradients before the base's step, and of updates after it.

    Args:
        units: The units of all blocks.
        host: The training.
        warm: With blocks that were solved; else with cold ones.

    Returns:
        One number an exchange.
    """
    loads = [[0] * host.team.ranks for _ in range(2)]
    for stack in units.stacks:
        for block in stack.blocks if stack.owner is not None else ():
            for stage in STAGES[stack.action(host, block, warm)]:
                loads[stage][stack.owner or 0] += block.rows * block.cols * stack.dtype.itemsize
    return [max(stage) for stage in loads]


def moved(units: Units, host: Host, numbers: Iterable[int]) -> int:
    """Bytes that a rank sends of moments of warm blocks when bases are swapped: all of a block's, once.

    Args:
        units: The units of all blocks.
        host: The training.
        numbers: Those whose solves land.

    Returns:
        The bytes.
    """
    loads, swapped = dict[int, int](), [number for number in numbers if units[number].columns]
    for index, row in {(units[number].stack, units[number].row) for number in swapped}:
        stack = units.stacks[index]
        if stack.owner is not None and stack.rotates:
            block = stack.blocks[row]
            numel = block.rows * block.cols * host.access.weight(block.param).itemsize
            size = host.base.moments(host.group(block.group)) * numel
            loads[stack.owner] = loads.get(stack.owner, 0) + size
    return max(loads.values(), default=0)
