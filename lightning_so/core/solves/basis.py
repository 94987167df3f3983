"""The life of a block's basis: entered when it is warm, left for good. The base's moments move with it."""

import warnings
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from lightning_so.actions import rotate
from lightning_so.contract.block import Block
from lightning_so.core.host import Host
from lightning_so.core.matrices.matrices import MomentChange
from lightning_so.core.report import Report
from lightning_so.core.schedule.schedule import Rung
from lightning_so.core.schedule.units import Place, Units
from lightning_so.core.solves.flight import launch, solve
from lightning_so.core.solves.landing import Landing
from lightning_so.core.solves.line import InLine
from lightning_so.core.stacks.roster import Roster
from lightning_so.core.stacks.stack import Stack
from lightning_so.linalg.precision import FullPrecision
from lightning_so.linalg.result import Solved

#: Blocks become warm over this many steps, so that their entries do not meet on one.
ENTRIES = 8
#: Later than any method's start.
EVER = 1_000_000_000


def ready(place: Place, units: Units, roster: Roster, host: Host, step: int) -> bool:
    """Whether a block that is cold may become warm at this step."""
    index, row = place
    if roster.warm[index][row]:
        return False
    schedule, stack = units.schedule, units.stacks[index]
    solved = [schedule.solved[number] for number in units.of_block(place)]
    turn = stack.blocks[row].position % ENTRIES
    early = schedule.bought is not None and schedule.bought.early and step >= schedule.bought.since + turn
    return stack.method.ready(host.base, EVER if early else step - schedule.origin - turn, solved)


def follow(at: Landing) -> None:
    """Regroup blocks by what has a gradient at this step, and say which have a bias with one and a weight without.

    Their biases are the base's alone: blocks that rotate leave their basis first, and enter again once it is solved
    anew.

    Args:
        at: Whose blocks.
    """
    roster, names = at.roster, []
    roster.refresh()
    for index, row in sorted(roster.alone):
        stack, name = roster.stacks[index], roster.stacks[index].blocks[row].name
        if stack.rotates and roster.warm[index][row]:
            cool((index, row), at)
        if name not in roster.told:
            roster.told.add(name)
            names.append(name)
    if names:
        warnings.warn(
            f"{', '.join(names)}: without a gradient, while the bias has one (a frozen weight: BitFit). The optimizer "
            f"steps on these biases alone, without curvature, until the weights have gradients again.",
            stacklevel=2,
        )


def entering(units: Units, roster: Roster, host: Host, step: int) -> bool:
    """Whether the moments of any block will move into its basis at this step."""
    return any(
        ready((index, row), units, roster, host, step)
        for index, rows in enumerate(roster.live)
        if units.stacks[index].rotates and not all(roster.warm[index])
        for row in rows
    )


def all_ready(units: Units, roster: Roster, host: Host, step: int) -> bool:
    """Whether no block waits for a solve any more, so that all can become warm at this step.

    Blocks that nothing is solved for never wait, nor do those whose solves go on failing.

    Args:
        units: The units.
        roster: Who takes part.
        host: The training.
        step: The step.

    Returns:
        Whether; equal on all ranks.
    """
    places = ((index, row) for index, rows in enumerate(roster.live) for row in rows)
    return all(
        roster.warm[place[0]][place[1]]
        or ready(place, units, roster, host, step)
        or not units.of_block(place)
        or any(units.schedule.failed[number] for number in units.of_block(place))
        for place in places
    )


@FullPrecision()
def enter(at: Landing) -> None:
    """Let blocks whose basis became warm rotate from this step on: their moments move into it.

    Those of blocks that are away move in again. That the base has a foreign state is said once.

    Args:
        at: Whose blocks.
    """
    units, roster, host, report = at.units, at.roster, at.host, at.report
    changes, returned = list[MomentChange](), list[str]()
    for index, stack in enumerate(units.stacks):
        rows = range(len(stack.blocks)) if roster.live[index] and not all(roster.warm[index]) else ()
        places = [(index, row) for row in rows if (index, row) not in roster.alone]
        new = [place[1] for place in places if ready(place, units, roster, host, report.step)]
        for row in new:
            roster.warm[index][row] = True
            if (index, row) in roster.away:
                roster.away.pop((index, row))
                returned.append(stack.blocks[row].name)
            if stack.rotates:
                changes.append(_entry(stack, row, host))
        if new:
            roster.regroup(index)
    at.matrices.change_moments(changes)
    if roster.foreign:
        roster.foreign = False
        report.foreign += 1
        _say_foreign(returned, report)


def _say_foreign(returned: list[str], report: Report) -> None:
    """Say, the first time, that the base's state was changed and ours was not."""
    if report.foreign > 1:
        return
    moments = ""
    if returned:
        names = ", ".join(returned[:3]) + (", ..." if returned[3:] else "")
        moments = f" First moments of {len(returned)} blocks ({names}) are exact, second ones start from the factors."
    warnings.warn(
        f"the optimizer's state was changed between steps {report.step - 1} and {report.step}, and what is known of "
        f"curvature was not.{moments} To go back exactly load a whole checkpoint of the Trainer, or the optimizer's "
        f"state and then the engine's.",
        stacklevel=2,
    )


def _entry(stack: Stack, row: int, host: Host) -> MomentChange:
    """Moves one block's plain moments into its basis: the first exactly, the second from the factors."""
    block = stack.blocks[row]

    def turn(x: Tensor) -> Tensor:
        return stack.turning.turn(stack.stats, x[None], [row], leave=False)[0]

    def change(states: list[dict]) -> None:
        spectrum = stack.turning.spectrum(stack.stats, row)
        rotate.enter(host.base, states, block.grouped, turn, *spectrum, host.least_variance(block))

    return MomentChange.of_one(block, host.states(block), change)


def rotating(roster: Roster) -> Iterator[tuple[Stack, int, Block]]:
    """Stack, row and block of all that rotate."""
    for index, row in places(roster):
        yield roster.stacks[index], row, roster.stacks[index].blocks[row]


@FullPrecision()
def plain(stack: Stack, row: int, host: Host, states: list[dict]) -> None:
    """Move the moments in `states` out of a block's basis, in place: first exactly, second by squared overlap.

    Args:
        stack: The stack.
        row: Row of the block, which rotates.
        host: The training.
        states: The optimizer's states of its parameters, or copies of them.
    """

    def turn(x: Tensor, square: bool) -> Tensor:
        batch = x.to(stack.dtype)[None]
        return stack.turning.turn(stack.stats, batch, [row], leave=True, square=square)[0]

    block = stack.blocks[row]
    shape, least = block.grouped, host.least_variance(block)
    rotate.depart(host.base, states, shape, lambda x: turn(x, False), lambda x: turn(x, True), least)


def cool(place: Place, at: Landing) -> None:
    """Take one block out of its basis: it is cold, and enters again once all its units are solved anew.

    Args:
        place: The block.
        at: Where its solves have landed; that they did is forgotten.
    """
    index, row = place
    stack, host = at.units.stacks[index], at.host
    if stack.rotates:
        block = stack.blocks[row]
        at.matrices.change_moments([MomentChange.of_one(block, host.states(block), partial(plain, stack, row, host))])
    at.roster.warm[index][row] = False
    for unit in at.units.of_block(place):
        at.units.schedule.solved[unit] = 0
    at.roster.regroup(index)


def leave(roster: Roster, left: Iterable[Place]) -> None:
    """Note that moments of blocks that rotated are plain now: they are away, until the next step.

    Args:
        roster: Who is warm.
        left: The blocks.
    """
    for index, row in left:
        roster.foreign = True
        roster.warm[index][row] = False
        roster.away[index, row] = None
    roster.regroup_all()


def places(roster: Roster) -> list[Place]:
    """All blocks that rotate."""
    return [
        (index, row)
        for index, stack in enumerate(roster.stacks)
        for row, warm in enumerate(roster.warm[index])
        if stack.rotates and warm
    ]


@torch.no_grad()
def depart(at: Landing) -> None:
    """Take the moments of all blocks back to plain coordinates, so that the base can go on alone.

    Args:
        at: Whose blocks: afterwards none that rotated is warm.
    """
    for place in places(at.roster):
        cool(place, at)


@torch.no_grad()
@FullPrecision()
def settle(at: Landing) -> None:
    """Find every basis anew from the factors alone, and move the plain moments of warm blocks into it.

    Args:
        at: Whose factors and histories were loaded, and who is warm.
    """
    units, roster, host, report = at.units, at.roster, at.host, at.report
    numbers = [number for number in range(len(units)) if units.schedule.solved[number] > 0]

    def anew(units: Units, numbers: list[int], _: Rung) -> Solved:
        return solve(units, numbers, Rung.AFRESH)

    flight = launch(units, numbers, anew, host.team, report.step, InLine())
    report.solved_here += flight.here
    for batch in flight.arrived():
        stack, flags = units.stack(batch.numbers[0]), batch.solved.good.tolist()
        good = [number for number, ok in zip(batch.numbers, flags, strict=True) if ok]
        if good and (stack.here or stack.shared):
            stack.solving.swap_in(units.asked(good), batch.solved.some(flags))
        for number, ok in zip(batch.numbers, flags, strict=True):
            if not ok:
                report.failures += 1
                roster.warm[units[number].stack][units[number].row] = False
                units.schedule.solved[number] = 0
    at.matrices.change_moments([_entry(stack, row, host) for stack, row, _ in rotating(roster)])
    roster.regroup_all()
