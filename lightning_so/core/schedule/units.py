"""The units of all stacks, by their numbers in the schedule."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from lightning_so.contract.block import Block
from lightning_so.contract.method import Asked
from lightning_so.contract.unit import Unit
from lightning_so.core.schedule.schedule import Place, Rung, Schedule
from lightning_so.core.stacks.stack import Stack, room


@dataclass(frozen=True, eq=False)
class Units:
    """What is solved on its own, of which block it is, and when it is due.

    Attributes:
        stacks: The stacks.
        schedule: When each unit is due, and who solves it.
        numbers: By stack and row, the numbers of the block's units.
    """

    stacks: list[Stack]
    schedule: Schedule
    numbers: list[list[list[int]]]

    @classmethod
    def of(cls, stacks: list[Stack], ranks: int) -> "Units":
        """The units of stacks, with their methods' intervals and spreads, in the order of the plan.

        Args:
            stacks: The stacks.
            ranks: Those that share the work.

        Returns:
            The units, none solved yet.
        """
        # Ties of the schedule are broken by this order, so that when a unit is due does not depend on the world size.
        units = []
        for index, stack in enumerate(stacks):
            period, spread = stack.method.pace()
            found = stack.method.units(index, stack)
            units += [replace(unit, period=period, staggered=spread.staggered) for unit in found]
        units.sort(key=lambda unit: stacks[unit.stack].blocks[unit.row].position)
        owners = [stacks[unit.stack].owner for unit in units]
        numbers: list[list[list[int]]] = [[[] for _ in stack.blocks] for stack in stacks]
        for number, unit in enumerate(units):
            numbers[unit.stack][unit.row].append(number)
        return cls(stacks, Schedule(units, ranks, owners), numbers)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.schedule.units)

    def __getitem__(self, number: int) -> Unit:
        """A unit."""
        return self.schedule.units[number]

    def __iter__(self) -> Iterator[Unit]:
        """All of them, in order."""
        return iter(self.schedule.units)

    def stack(self, number: int) -> Stack:
        """The stack of a unit."""
        return self.stacks[self[number].stack]

    def block(self, number: int) -> Block:
        """The block of a unit."""
        return self.stack(number).blocks[self[number].row]

    def of_block(self, place: Place) -> list[int]:
        """The numbers of a block's units."""
        index, row = place
        return self.numbers[index][row]

    def owner_of(self, place: Place) -> int:
        """The rank that folds and solves a block."""
        return self.schedule.owner[self.of_block(place)[0]]

    def alike(self, numbers: Iterable[int]) -> list[list[int]]:
        """Units that are solved in one call: of one method, kind, place and rung.

        Args:
            numbers: Those to solve.

        Returns:
            Their numbers, in order of first appearance.
        """
        found: dict[tuple, list[int]] = {}
        for number in numbers:
            unit, stack = self[number], self.stack(number)
            kind = unit.shape, unit.columns, unit.kind, self.rung(number)
            found.setdefault((id(stack.method), stack.dtype, stack.device, stack.shared, *kind), []).append(number)
        return [some for numbers in found.values() for some in self._runs(numbers)]

    def portions(self, due: Sequence[int], ranks: int) -> Iterator[list[int]]:
        """Units in the flights that they are solved in: all in one, or in several whose results have little room.

        Those of a block stay together, so that its moments move once.

        Args:
            due: Numbers of those to solve.
            ranks: Those that share the work: a portion has the room of a stack for each.

        Yields:
            The numbers of a portion.
        """
        if not any(self.stack(number).packed for number in due):
            if due:
                yield list(due)
            return
        some, numbers = list[int](), 0
        for _, of_block in groupby(sorted(due), key=lambda number: self.block(number).position):
            added = [*of_block]
            size = sum(math.prod(self[number].shape) for number in added)
            if some and numbers + size > ranks * self._room:
                yield some
                some, numbers = [], 0
            some, numbers = some + added, numbers + size
        yield some

    def _runs(self, numbers: list[int]) -> Iterator[list[int]]:
        """Units that are alike, all together; or as many as have the room of a stack, where that is to be small."""
        size = len(numbers)
        if self.stack(numbers[0]).packed:
            size = max(1, self._room // math.prod(self[numbers[0]].shape))
        for at in range(0, len(numbers), size):
            yield numbers[at : at + size]

    @cached_property
    def _room(self) -> int:
        return room(block for stack in self.stacks for block in stack.blocks)

    @cached_property
    def kinds(self) -> list[int]:
        """By unit, which of those that are solved in one call it belongs to, numbered in order of first appearance."""
        found = {}
        for number, unit in enumerate(self):
            stack = self.stack(number)
            kind = id(stack.method), stack.dtype, stack.device, unit.shape, unit.columns, unit.kind
            found.setdefault(kind, []).append(number)
        of_unit = {number: kind for kind, numbers in enumerate(found.values()) for number in numbers}
        return [of_unit[number] for number in range(len(self))]

    def rung(self, number: int) -> Rung:
        """On which rung a unit is solved next; the same on every rank."""
        stack = self.stack(number)
        lowest = Rung.QUICK if stack.sprinter is not None and stack.sprinter.quick(stack.stats) else Rung.PLAIN
        return Rung(max(self.schedule.rung[number], lowest))

    def asked(self, numbers: Iterable[int]) -> list[Asked]:
        """What a method is told of units."""
        return [(self.stack(number).stats, self[number]) for number in numbers]

    def key(self, number: int) -> str:
        """What a unit is called in files."""
        unit = self[number]
        return f"{self.block(number).name}:{unit.side}:{unit.tile}"
