"""The units of all stacks, by their numbers in the schedule."""

from dataclasses import replace
from typing import TYPE_CHECKING

from lightning_so.contract.block import Stack
from lightning_so.contract.unit import Unit

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def timed(stacks: list[Stack]) -> list[Unit]:
    """The units of stacks, with their methods' intervals and spreads, in the order of the plan."""
    # Ties of the schedule are broken by this order, so that when a unit is due does not depend on the world size.
    units = []
    for index, stack in enumerate(stacks):
        period, spread = stack.method.timing()
        found = stack.method.units(index, stack)
        units += [replace(unit, period=period, staggered=spread.staggered) for unit in found]
    return sorted(units, key=lambda unit: stacks[unit.stack].blocks[unit.row].position)


def _unit_key(engine: "Engine", number: int) -> str:
    unit = engine.schedule.units[number]
    return f"{engine.stacks[unit.stack].blocks[unit.row].name}:{unit.side}:{unit.tile}"


Place = tuple[int, int]


def owner_of(engine: "Engine", place: Place) -> int:
    """The rank that folds and solves a block."""
    index, row = place
    return engine.schedule.owner[engine.units_of[index][row][0]]
