"""Predicted bytes that a rank sends per step, of all that it sends: counted as `comm` counts them.

Every interval is at its largest, and every block has its last action; asked for cold ones, their first.
"""

import math
from collections.abc import Iterable, Sequence

from lightning_so.actions.precondition import Clip
from lightning_so.contract.block import Block
from lightning_so.contract.method import Action
from lightning_so.core.host import Host
from lightning_so.core.matrices.matrices import Matrices
from lightning_so.core.matrices.sharded import ShardedMatrices
from lightning_so.core.plan.table import amount
from lightning_so.core.schedule.schedule import gap
from lightning_so.core.schedule.units import Place, Units
from lightning_so.core.solves.wire import unit_bytes
from lightning_so.core.stacks.stack import Stack
from lightning_so.core.step import slopes
from lightning_so.core.step.guard import agreement_bytes
from lightning_so.core.trust import owned
from lightning_so.core.trust.exchanges import Exchange
from lightning_so.linalg.triangle import compact_shape


def traffic(
    units: Units, host: Host, matrices: Matrices, *, warm: bool = True, due: Sequence[Iterable[int]] | None = None
) -> float:
    """Predicted bytes that this rank sends per step, padding included, averaged over a cycle of the schedule.

    Args:
        units: What is solved, and who owns what.
        host: The training.
        matrices: Where matrices are whole.
        warm: With blocks that were solved; else with cold ones.
        due: By step, the numbers of the units that are solved; None for those of the slots, none of which slips.

    Returns:
        The bytes; 0 in one process.
    """
    agreed = agreement_bytes(host.world.ranks, len(host.params))
    if host.team.ranks == 1:
        return agreed
    pieces = _pieces(units, host, matrices, warm=warm) if isinstance(matrices, ShardedMatrices) else 0.0
    if alone := matrices.owned and not matrices.sharded:
        pieces = sum(owned.results(units, host, warm=warm))
    gathers = _gathers(units, host, due, moving=alone and warm)
    return agreed + sum(map(sum, gathers)) / len(gathers) + _windows(units, host)[1] + pieces


def exchanges(
    units: Units, host: Host, matrices: Matrices, due: Sequence[Iterable[int]], watched: Sequence[float]
) -> list[list[Exchange]]:
    """What this rank exchanges at each of some steps, all blocks warm; its bytes are those of `traffic`.

    Args:
        units: See `traffic`.
        host: See `traffic`.
        matrices: See `traffic`.
        due: By step, the numbers of the units that are solved.
        watched: By step, the share of the blocks with rows whose windows travel.

    Returns:
        By step, the exchanges; none in one process.
    """
    if host.team.ranks == 1:
        return [[] for _ in due]
    steady = [Exchange("all_reduce", 1, agreement_bytes(host.world.ranks, len(host.params)))]
    if isinstance(matrices, ShardedMatrices):
        sums = _sums(units, host, warm=True)
        blocks = [(stack, block) for stack in units.stacks for block in stack.blocks]
        steady.append(Exchange("all_reduce", bool(sums), sums))
        # All matrices of a stage travel in one exchange.
        often = max((sum(trips(host, *of, warm=True)) for of in blocks), default=0)
        steady.append(Exchange("all_to_all", often, _pieces(units, host, matrices, warm=True) - sums))
    alone = matrices.owned and not matrices.sharded
    if alone:
        results = owned.results(units, host, warm=True)
        steady.append(Exchange("all_gather", sum(map(bool, results)), sum(results)))
    calls, size = _windows(units, host, whole=True)
    return [
        [
            *steady,
            Exchange("all_gather", len(gathers), sum(gathers)),
            Exchange("reduce", seen * calls, seen * size),
        ]
        for gathers, seen in zip(_gathers(units, host, due, moving=alone), watched, strict=True)
    ]


def described(units: Units, host: Host, matrices: Matrices, lag: int) -> str:
    """One line of the plan: where matrices are whole, what a rank sends, and a lag; nothing of it in one process.

    Args:
        units: See `traffic`.
        host: See `traffic`.
        matrices: See `traffic`.
        lag: Steps between a solve and its use.

    Returns:
        The line.
    """
    ranks, size = host.world.ranks, traffic(units, host, matrices)
    if host.access.local:
        return (
            f"sharding='local': each of {ranks} ranks treats its rows as the matrix; results depend on the number of "
            f"ranks; {size:.0f} bytes a step; this is the plan of rank {host.world.rank}"
        )
    later = ", solves are used a step later" if lag else ""
    return "; ".join(filter(None, [host.access.remark, _shared(units, host, matrices, size, later)]))


def _shared(units: Units, host: Host, matrices: Matrices, size: float, later: str) -> str:
    """What ranks share, at what price, and when it is used."""
    ranks, each = host.world.ranks, f"{size / 1e3:.1f} kB" if size < 1e7 else amount(size)
    if ranks == 1:
        return later.removeprefix(", ")
    if not matrices.owned:
        return f"on each of {ranks} ranks: all matrices, {each} a step{later}"
    if not matrices.sharded:
        found = [stack.owner is None for stack in units.stacks for _ in stack.blocks]
        return (
            f"on each of {ranks} ranks: curvature of {sum(found)} of {len(found)} matrices, of the others at their "
            f"owners, {each} a step{later}"
        )
    blocks = [(stack, block) for stack in units.stacks for block in stack.blocks]
    often, cold = (max(sum(trips(host, *of, warm=warm)) for of in blocks) for warm in (True, False))
    first = f" (cold: {cold})" if cold != often else ""
    return f"sharded over {ranks} ranks: whole matrices at owners, {each} a step in {often} trips{first}{later}"


def trips(host: Host, stack: Stack, block: Block, *, warm: bool) -> tuple[int, int]:
    """How often the pieces of a block travel to its owner in a step, and back, its moments' own trips apart."""
    action = stack.action(host, block, warm)
    # Cold, an observed gradient travels and nothing returns; bent, it was seen before the moment that is turned exists.
    look = stack.observer is not None
    if action is Action.BASE:
        return int(look), 0
    if action is Action.BEND:
        return look + 1, 1
    # What the owner has seen need not travel again, unless it is no longer the gradient.
    coupled = action is Action.ROTATE and any(map(host.couples_decay, stack.blocks))
    there = 2 if look and coupled else 1
    return (there, 1) if action is Action.PRECONDITION else (there + 1, 2)


# ---------------------------------------------------------------- what ranks send wherever matrices are


def _gathers(units: Units, host: Host, due: Sequence[Iterable[int]] | None, *, moving: bool) -> list[list[int]]:
    """What all-gathers of solves carry, each padded to the rank with most.

    Args:
        units: See `traffic`.
        host: See `traffic`.
        due: See `traffic`.
        moving: Whether owners give moments whose bases are swapped.

    Returns:
        By step, the bytes of each: a portion's results, and the moments that follow them.
    """
    found = list[list[int]]()
    for of in units.schedule.slots() if due is None else due:
        portions = [*units.portions([*of], host.team.ranks)]
        moved = [owned.moved(units, host, some) for some in portions if moving]
        found.append([*(_padded(units, some) for some in portions), *filter(None, moved)])
    return found


def _padded(units: Units, numbers: Sequence[int]) -> int:
    """Bytes of the rank with most."""
    loads = dict[int, int]()
    for number in numbers:
        owner = units.schedule.owner[number]
        loads[owner] = loads.get(owner, 0) + unit_bytes(units.stack(number), units[number])
    return max(loads.values(), default=0)


def _windows(units: Units, host: Host, *, whole: bool = False) -> tuple[int, float]:
    """Windows of rows, to their owners, and what every rank needs of them: reductions, and bytes.

    Args:
        units: See `traffic`.
        host: See `traffic`.
        whole: For a step at which all blocks are watched; else for a mean step.

    Returns:
        Both.
    """
    total, owners = 0.0, set[int]()
    for index, stack in enumerate(units.stacks):
        if not (method := stack.tapped):
            continue
        for row in range(len(stack.blocks)):
            place = index, row
            every = 1 if whole else gap(units[units.of_block(place)[0]].final)
            owners.add(units.owner_of(place))
            total += sum(window.nbytes for window in method.shared_windows(stack.stats, row)) / every
            if units.owner_of(place) != host.team.rank:
                sizes = [math.prod(compact_shape(shape)) for shape in method.window_shapes(stack.stats, row)]
                total += stack.dtype.itemsize * sum(sizes) / every
    return len(owners), total


# ---------------------------------------------------------------- sharded parameters


def _pieces(units: Units, host: Host, matrices: ShardedMatrices, *, warm: bool) -> float:
    """Pieces to their owners and back, and the small sums over ranks."""
    total = _sums(units, host, warm)
    for index, stack in enumerate(units.stacks):
        for row, block in enumerate(stack.blocks):
            there, back = trips(host, stack, block, warm=warm)
            to_owner, from_owner = _sizes(host, matrices, block, [stack.dtype.itemsize] * len(block.params))
            total += there * to_owner + back * from_owner
            if warm and stack.rotates:
                moments = _sizes(host, matrices, block, _moments(host, matrices, block))
                total += _moved(units, (index, row)) * sum(moments)
    return total


def _sizes(host: Host, matrices: ShardedMatrices, block: Block, itemsizes: list[int]) -> tuple[int, int]:
    """Bytes that this rank sends when a block travels to its owner, and back, given those of a number of each part."""
    rank = host.team.rank
    pieces = list(zip(matrices.pieces(block), itemsizes, strict=True))
    if block.owner != rank:
        return sum(p.gives(rank) * size for p, size in pieces), 0
    others = [other for other in range(host.team.ranks) if other != rank]
    return 0, sum(p.size(other) * size for p, size in pieces for other in others)


def _moved(units: Units, place: Place) -> float:
    """Share of the steps at which a tile's basis is swapped in a block: all its moments travel, once."""
    numbers = [number for number in units.of_block(place) if units[number].columns]
    steps = {step for number in numbers for step in units.schedule.loads(number)}
    return len(steps) / units.schedule.cycle


def _moments(host: Host, matrices: ShardedMatrices, block: Block) -> list[int]:
    """Bytes of a number of all moments of each parameter; before the base has any, of one of each kind."""
    usual = host.base.moments(host.group(block.group))
    return [matrices.travelling(p, usual) * host.access.weight(p).itemsize for p in block.params]


def _sums(units: Units, host: Host, warm: bool) -> float:
    """Lengths of bent updates and slopes along them, and totals of clips."""
    found = [(stack, stack.action(host, block, warm)) for stack in units.stacks for block in stack.blocks]
    bent = [stack for stack, action in found if action is Action.BEND]
    measured = sum(stack.slopes is not None for stack in bent) * slopes.NUMBERS / slopes.EVERY
    total = (len(bent) + measured) * bent[0].dtype.itemsize if bent else 0
    clipped = [
        stack for stack, action in found if action is Action.PRECONDITION and stack.method.step_bound is not None
    ]
    dtypes = {id(stack.method): stack.dtype for stack in clipped[::-1]}
    total += Clip.NUMBERS * len(dtypes) * max((dtype.itemsize for dtype in dtypes.values()), default=0)
    return total
