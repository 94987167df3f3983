"""The life of a block's basis: solved and swapped in, entered when it is warm, left for good.

The base's moments move with it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_so.actions import rotate
from lightning_so.core import share
from lightning_so.core.block import Block, Stack

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine

#: Blocks become warm over this many steps, so that their entries do not meet on one.
ENTRIES = 4


def solve(engine: "Engine", due: list[int]) -> None:
    """Solve the due units, each on its owner, and swap their bases in on all ranks; a failure keeps the last basis.

    Args:
        engine: The engine.
        due: Numbers of units in the schedule.
    """
    report = engine.report
    for number, result in zip(due, share.solve(engine, due), strict=True):
        unit = engine.schedule.units[number]
        stack = engine.stacks[unit.stack]
        report.solves += 1
        report.retries += result.attempts > 1
        if not result.ok or result.order is None:
            report.failures += 1
            continue
        engine.schedule.solved[number] += 1
        cut, old, new = engine.rotator.accept(stack.stats, unit, result)
        if engine.warm[unit.stack][unit.row]:
            state = engine.optimizer.state.get(stack.blocks[unit.row].param, {})
            rotate.carry(engine.base, state, stack.shape, cut, unit.side, old, new, result.order)


def enter(engine: "Engine", index: int, stack: Stack) -> bool:
    """Move the moments of blocks whose basis became warm into it.

    Args:
        engine: The engine.
        index: Index of the stack.
        stack: The stack.

    Returns:
        Whether any block entered.
    """
    entered = False
    for row, block in enumerate(stack.blocks):
        if engine.warm[index][row]:
            continue
        solved = [engine.schedule.solved[number] for number in engine.units_of[index][row]]
        if not engine.method.ready(engine.report.step - (index + row) % ENTRIES, solved):
            continue
        engine.warm[index][row] = entered = True
        state = engine.optimizer.state.get(block.param, {})

        def turn(x: Tensor, row: int = row) -> Tensor:
            return engine.rotator.turn(stack.stats, x[None], [row], leave=False)[0]

        rotate.enter(engine.base, state, stack.shape, turn, *engine.rotator.spectrum(stack.stats, row))
    return entered


def rotating(engine: "Engine") -> Iterator[tuple[int, int, Block]]:
    """(stack, row, block) of all blocks that rotate."""
    for index, stack in enumerate(engine.stacks):
        for row, block in enumerate(stack.blocks):
            if engine.warm[index][row]:
                yield index, row, block


def plain(engine: "Engine", index: int, row: int, state: dict) -> None:
    """Move the moments in `state` out of a block's basis, in place: first exactly, second by squared overlap.

    Args:
        engine: The engine.
        index: Index of the stack.
        row: Row of the block, which rotates.
        state: The optimizer's state of the parameter, or a copy of it.
    """
    stack = engine.stacks[index]

    def turn(x: Tensor, square: bool) -> Tensor:
        batch = x.to(stack.dtype)[None]
        return engine.rotator.turn(stack.stats, batch, [row], leave=True, square=square)[0]

    rotate.depart(engine.base, state, stack.shape, lambda x: turn(x, False), lambda x: turn(x, True))


@torch.no_grad()
def depart(engine: "Engine") -> None:
    """Take the moments of all blocks back to plain coordinates, so that the base can go on alone.

    Args:
        engine: The engine; its blocks are cold afterwards.
    """
    engine.restore()
    for index, row, block in rotating(engine):
        plain(engine, index, row, engine.optimizer.state.get(block.param, {}))
        engine.warm[index][row] = False
    engine.regroup()
