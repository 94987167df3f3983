"""What an engine makes of a model, an optimizer and methods."""

from typing import TYPE_CHECKING

from lightning_so.contract.block import Stack
from lightning_so.core.plan.owners import appoint, number_calls
from lightning_so.core.stacks.stack import stack_blocks, tapped

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
