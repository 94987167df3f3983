"""The life of a block's basis: solved and swapped in, entered when it is warm, left for good.

The base's moments move with it.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_so.actions import rotate
from lightning_so.contract.block import Block, Stack
from lightning_so.core.host import least_variance
from lightning_so.core.matrices.matrices import Job
from lightning_so.core.solves import flight
from lightning_so.core.stacks.roster import rebuild
from lightning_so.core.stacks.stack import solving, turning, turns

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


#: Blocks become warm over this many steps, so that their entries do not meet on one.
ENTRIES = 8


def ready(engine: "Engine", index: int, row: int) -> bool:
    """Whether a block that is cold may become warm at this step."""
    if engine.warm[index][row]:
        return False
    solved = [engine.schedule.solved[number] for number in engine.units_of[index][row]]
    age = engine.report.step - engine.schedule.origin - engine.stacks[index].blocks[row].position % ENTRIES
    return engine.stacks[index].method.ready(engine.base, age, solved)


def entering(engine: "Engine") -> bool:
    """Whether the moments of any block will move into its basis at this step."""
    return any(
        ready(engine, index, row)
        for index, rows in enumerate(engine.live)
        if turns(engine, engine.stacks[index])
        for row in rows
    )


def enter(engine: "Engine") -> None:
    """Let blocks whose basis became warm rotate from this step on: their moments move into it."""
    jobs = list[Job]()
    for index, stack in enumerate(engine.stacks):
        entering = [row for row in range(len(stack.blocks)) if engine.live[index] and ready(engine, index, row)]
        for row in entering:
            engine.warm[index][row] = True
            if turns(engine, stack):
                jobs.append(_entry(engine, stack, row))
        if entering:
            rebuild(engine, index)
    engine.layout.move(jobs)


def _entry(engine: "Engine", stack: Stack, row: int) -> Job:
    """Moves one block's plain moments into its basis: the first exactly, the second from the factors."""
    block = stack.blocks[row]

    def turn(x: Tensor) -> Tensor:
        return turning(stack).turn(stack.stats, x[None], [row], leave=False)[0]

    def change(states: list[dict]) -> None:
        spectrum = turning(stack).spectrum(stack.stats, row)
        rotate.enter(engine.base, states, block.grouped, turn, *spectrum, least_variance(engine, block))

    return Job(block, engine.layout.states(block), change)


def rotating(engine: "Engine") -> Iterator[tuple[int, int, Block]]:
    """(stack, row, block) of all blocks that rotate."""
    for index, stack in enumerate(engine.stacks):
        for row, block in enumerate(stack.blocks):
            if turns(engine, stack) and engine.warm[index][row]:
                yield index, row, block


def plain(engine: "Engine", index: int, row: int, states: list[dict]) -> None:
    """Move the moments in `states` out of a block's basis, in place: first exactly, second by squared overlap.

    Args:
        engine: The engine.
        index: Index of the stack.
        row: Row of the block, which rotates.
        states: The optimizer's states of its parameters, or copies of them.
    """
    stack = engine.stacks[index]

    def turn(x: Tensor, square: bool) -> Tensor:
        batch = x.to(stack.dtype)[None]
        return turning(stack).turn(stack.stats, batch, [row], leave=True, square=square)[0]

    block = stack.blocks[row]
    shape, least = block.grouped, least_variance(engine, block)
    rotate.depart(engine.base, states, shape, lambda x: turn(x, False), lambda x: turn(x, True), least)


def cool(engine: "Engine", index: int, row: int) -> None:
    """Take one block out of its basis: it is cold, and enters again once all its units are solved anew."""
    if turns(engine, engine.stacks[index]):
        block = engine.stacks[index].blocks[row]
        engine.layout.move([Job(block, engine.layout.states(block), partial(plain, engine, index, row))])
    engine.warm[index][row] = False
    for unit in engine.units_of[index][row]:
        engine.schedule.solved[unit] = 0
    rebuild(engine, index)


@torch.no_grad()
def depart(engine: "Engine") -> None:
    """Take the moments of all blocks back to plain coordinates, so that the base can go on alone.

    Args:
        engine: The engine; its blocks are cold afterwards.
    """
    engine.restore()
    for index, row, _ in list(rotating(engine)):
        cool(engine, index, row)


@torch.no_grad()
def settle(engine: "Engine") -> None:
    """Find every basis anew from the factors alone, and move the plain moments of warm blocks into it.

    Args:
        engine: The engine, whose factors and warm flags were loaded.
    """
    numbers = [n for n, unit in enumerate(engine.schedule.units) if engine.schedule.solved[n] > 0]
    results = flight.solve(engine, numbers, lambda stack, unit: solving(stack).settle(stack.stats, unit))
    for number, result in zip(numbers, results, strict=True):
        unit = engine.schedule.units[number]
        stack = engine.stacks[unit.stack]
        if result.ok:
            if stack.here or stack.shared:
                solving(stack).accept(stack.stats, unit, result)
        else:
            engine.report.failures += 1
            engine.warm[unit.stack][unit.row] = False
            engine.schedule.solved[number] = 0
    engine.layout.move([_entry(engine, engine.stacks[index], row) for index, row, _ in rotating(engine)])
    engine.regroup()
