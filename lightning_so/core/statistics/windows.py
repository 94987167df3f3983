"""From what a step observed to factors: windows of rows travel to their owners in flat buckets and are folded there.

They leave before the step, or during the backward pass where the strategy tells which layers are done with theirs.
Only the owner of a block has its factors; what it solves goes to all. Before a save they go to all, too.
"""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from lightning_so.comm import Local, replicated_tensors
from lightning_so.core.schedule.units import Place, Units
from lightning_so.core.stacks.stack import Stack
from lightning_so.linalg.triangle import pack, unpack


class Windows:
    """The windows of all blocks whose rows are observed.

    Attributes:
        underway: Of layers of the coming step, those that have left for their owners.
    """

    def __init__(self, units: Units, team: Local) -> None:
        """None has left yet.

        Args:
            units: Who owns which block.
            team: How they travel.
        """
        self.underway: dict[Place, Bucket] = {}
        self._units, self._team = units, team

    def send(self, places: Collection[Place]) -> None:
        """Send off the windows of blocks, one bucket an owner.

        Of several backward passes before a step, the last one counts.

        Args:
            places: Of which blocks; the same, in the same order of calls, on every rank.
        """
        by_owner: dict[int, list[Place]] = {}
        for place in places:
            by_owner.setdefault(self._units.owner_of(place), []).append(place)
        for owner, mine in sorted(by_owner.items()):
            bucket = Bucket({place: self._window(place) for place in mine}, self._team, owner)
            self.underway.update(dict.fromkeys(mine, bucket))

    def fold(self, places: list[Place], step: int, scale: float) -> None:
        """Sum the windows of watched blocks over ranks, each at its owner, and fold them there.

        What every rank needs is summed in one more bucket, and folded everywhere.

        Args:
            places: The blocks, of one method; equal on all ranks.
            step: The step.
            scale: K^2 over micro-batches.
        """
        self._fold_shared(places, step, scale)  # first: a window that went to its owner is forgotten
        if self._team.ranks > 1:
            self.send([place for place in places if place not in self.underway])
            for bucket in dict.fromkeys(self.underway[place] for place in places):
                bucket.land({place for place in places if self.underway[place] is bucket})
        for place in places:
            self.underway.pop(place, None)
        mine = {place for place in places if self._team.rank == self._units.owner_of(place)}
        for chosen in self._at_once(mine):
            chosen[0][0].tapping.fold([(stack.stats, rows) for stack, rows in chosen], step, scale)
        for index, rows in _by_stack(set(places) - mine).items():
            stack = self._units.stacks[index]
            stack.tapping.clear(stack.stats, rows)

    def _at_once(self, places: Iterable[Place]) -> list[list[tuple[Stack, list[int]]]]:
        """The stacks of blocks of one method, and rows in each: together where dtype and device are the same."""
        found: dict[tuple, list[tuple[Stack, list[int]]]] = {}
        for index, rows in _by_stack(places).items():
            stack = self._units.stacks[index]
            # One after the other where curvature is to hold less: what a call gathers is as large as its windows.
            apart = index if stack.packed else None
            found.setdefault((stack.dtype, stack.device, apart), []).append((stack, rows))
        return list(found.values())

    def _window(self, place: Place) -> list[Tensor]:
        index, row = place
        stack = self._units.stacks[index]
        return stack.tapping.windows(stack.stats, row)

    def _fold_shared(self, places: list[Place], step: int, scale: float) -> None:
        """Sum over ranks what every rank needs of the windows, and fold it."""
        stacks = [(self._units.stacks[index], row) for index, row in places]
        tensors = [window for stack, row in stacks for window in stack.tapping.shared_windows(stack.stats, row)]
        if self._team.ranks > 1 and tensors:
            bucket = torch.cat([tensor.flatten() for tensor in tensors])
            self._team.sum(bucket)
            for tensor, part in zip(tensors, bucket.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view(tensor.shape))
        for index, rows in _by_stack(places).items():
            stack = self._units.stacks[index]
            stack.tapping.fold_shared(stack.stats, rows, step, scale)


def _by_stack(places: Iterable[Place]) -> dict[int, list[int]]:
    """The rows of blocks, in order, by their stacks."""
    found: dict[int, list[int]] = {}
    for index, row in sorted(places):
        found.setdefault(index, []).append(row)
    return found


class Bucket:
    """Copies of the windows of some blocks, on their way to their owner."""

    def __init__(self, windows: Mapping[Place, list[Tensor]], team: Local, owner: int) -> None:
        """Send them off."""
        self._windows, self._here = windows, team.rank == owner
        self._parts = [pack(tensors) for tensors in windows.values()]
        self._sum = torch.cat(self._parts)
        self._arrived = team.start_reduce(self._sum, owner)

    def land(self, wanted: Collection[Place]) -> None:
        """Wait; at the owner, put sums in the place of its own windows.

        Args:
            wanted: Of which blocks.
        """
        self._arrived()
        if self._here:
            sums = self._sum.split([part.numel() for part in self._parts])
            for (place, tensors), total in zip(self._windows.items(), sums, strict=True):
                if place in wanted:
                    unpack(total, tensors)


def share_factors(units: Units, team: Local, places: Collection[Place] | None = None) -> None:
    """Give every rank the owners' factors: a collective, for saving at the boundary of a step, or before blocks move.

    Nothing of blocks whose owner alone has their curvature: it keeps them.

    Args:
        units: Who owns which block.
        team: How they travel.
        places: Of which blocks, equal on all ranks; None for all.
    """
    stacks = [stack for stack in units.stacks if stack.tapped and stack.owner is None]
    if team.ranks == 1 or not stacks:
        return
    factors: list[list[Tensor]] = [[] for _ in range(team.ranks)]
    for index, stack in enumerate(units.stacks):
        if not stack.tapped or not stack.solver or stack.owner is not None:
            continue
        for row in range(len(stack.blocks)):
            if places is not None and (index, row) not in places:
                continue
            owner = units.owner_of((index, row))
            factors[owner] += [tensor[row] for _, tensor in stack.solver.factors(stack.stats)]
    for tensors, copies in zip(factors, replicated_tensors(team, factors), strict=True):
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(copy)
