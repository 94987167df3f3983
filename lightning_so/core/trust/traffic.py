"""Predicted bytes that a rank sends per step, of all that it sends: counted as `comm` counts them.

Every interval is at its largest, and every block has its last action; asked for cold ones, their first.
"""

import math
from typing import TYPE_CHECKING

from lightning_so.contract.block import Block, Stack
from lightning_so.contract.method import Action
from lightning_so.core.matrices.sharded import Split
from lightning_so.core.schedule.schedule import FOLDS
from lightning_so.core.schedule.units import owner_of
from lightning_so.core.solves.wire import unit_bytes
from lightning_so.core.stacks.stack import observer, tapped, turns
from lightning_so.linalg.triangle import compact_shape

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def traffic(engine: "Engine", *, warm: bool = True) -> float:
    """Predicted bytes that this rank sends per step, padding included, averaged over a cycle of the schedule.

    Args:
        engine: The engine.
        warm: With blocks that were solved; else with cold ones.

    Returns:
        The bytes; 0 in one process.
    """
    if engine.comm.ranks == 1:
        return engine.guard.wire(engine.params)
    pieces = _pieces(engine, engine.layout, warm) if isinstance(engine.layout, Split) else 0.0
    return engine.guard.wire(engine.params) + _solved(engine) + _windows(engine) + pieces


def described(engine: "Engine") -> str:
    """One line of the plan: where matrices are whole, what a rank sends, and a lag; nothing of it in one process."""
    ranks, size = engine.peers.ranks, traffic(engine)
    if engine.access.local:
        return (
            f"sharding='local': each of {ranks} ranks treats its rows as the matrix; results depend on the number of "
            f"ranks; {size:.0f} bytes a step; this is the plan of rank {engine.peers.rank}"
        )
    return "; ".join(filter(None, [engine.access.remark, _shared(engine, ranks, size / 1e3)]))


def _shared(engine: "Engine", ranks: int, size: float) -> str:
    """What ranks share, at what price, and when it is used."""
    later = ", solves are used a step later" if engine.lag else ""
    if ranks == 1:
        return later.removeprefix(", ")
    if not engine.layout.split:
        return f"on each of {ranks} ranks: all matrices, {size:.1f} kB a step{later}"
    often, cold = (max(sum(trips(engine, *of, warm)) for of in _blocks(engine)) for warm in (True, False))
    first = f" (cold: {cold})" if cold != often else ""
    return f"sharded over {ranks} ranks: whole matrices at owners, {size:.1f} kB a step in {often} trips{first}{later}"


def trips(engine: "Engine", stack: Stack, block: Block, warm: bool) -> tuple[int, int]:
    """How often the pieces of a block travel to its owner in a step, and back, its moments' own trips apart."""
    action = _action(engine, stack, block, warm)
    # Cold, an observed gradient travels and nothing returns; bent, it was seen before the moment that is turned exists.
    look = observer(stack) is not None
    if action is Action.BASE:
        return int(look), 0
    if action is Action.BEND:
        return look + 1, 1
    # What the owner has seen need not travel again, unless it is no longer the gradient.
    coupled = action is Action.ROTATE and any(_coupled(engine, other) for other in stack.blocks)
    there = 2 if look and (engine.clipped or coupled) else 1
    return (there, 1) if action is Action.PRECONDITION else (there + 1, 2)


def _coupled(engine: "Engine", block: Block) -> bool:
    """Whether decay joins the gradient of a block."""
    group = engine.group(block.group)
    return not engine.base.decoupled(group) and group["weight_decay"] != 0


def _action(engine: "Engine", stack: Stack, block: Block, warm: bool) -> Action:
    return stack.method.action(engine.base, engine.group(block.group), block, warm)


def _blocks(engine: "Engine") -> list[tuple[Stack, Block]]:
    return [(stack, block) for stack in engine.stacks for block in stack.blocks]


# ---------------------------------------------------------------- what ranks send under every layout


def _solved(engine: "Engine") -> float:
    """Results of solves, in one all-gather that is padded to the rank with most."""
    schedule = engine.schedule
    wires: dict[int, list[int]] = {}
    for number in range(len(schedule.units)):
        for step in schedule.loads(number):
            loads = wires.setdefault(step, [0] * engine.comm.ranks)
            loads[schedule.owner[number]] += unit_bytes(engine, number)
    return sum(max(loads) for loads in wires.values()) / schedule.cycle


def _windows(engine: "Engine") -> float:
    """Windows of rows, to their owners, and what every rank needs of them."""
    total = 0.0
    for index, stack in enumerate(engine.stacks):
        if not (method := tapped(stack)):
            continue
        for row in range(len(stack.blocks)):
            every = max(1, engine.schedule.units[engine.units_of[index][row][0]].final // FOLDS)
            total += sum(window.nbytes for window in method.common(stack.stats, row)) / every
            if owner_of(engine, (index, row)) != engine.comm.rank:
                sizes = [math.prod(compact_shape(shape)) for shape in method.window_shapes(stack.stats, row)]
                total += stack.dtype.itemsize * sum(sizes) / every
    return total


# ---------------------------------------------------------------- sharded parameters


def _pieces(engine: "Engine", layout: Split, warm: bool) -> float:
    """Pieces to their owners and back, and the small sums over ranks."""
    total = _sums(engine, warm)
    for index, stack in enumerate(engine.stacks):
        for row, block in enumerate(stack.blocks):
            there, back = trips(engine, stack, block, warm)
            to_owner, from_owner = _sizes(engine, layout, block, [stack.dtype.itemsize] * len(block.params))
            total += there * to_owner + back * from_owner
            if warm and turns(engine, stack):
                moments = _sizes(engine, layout, block, _moments(engine, layout, block))
                total += _moved(engine, index, row) * sum(moments)
    return total


def _sizes(engine: "Engine", layout: Split, block: Block, itemsizes: list[int]) -> tuple[int, int]:
    """Bytes that this rank sends when a block travels to its owner, and back, given those of a number of each part."""
    rank = engine.comm.rank
    pieces = list(zip(layout.pieces(block), itemsizes, strict=True))
    if block.owner != rank:
        return sum(p.gives(rank) * size for p, size in pieces), 0
    others = [other for other in range(engine.comm.ranks) if other != rank]
    return 0, sum(p.size(other) * size for p, size in pieces for other in others)


def _moved(engine: "Engine", index: int, row: int) -> float:
    """Share of the steps at which a tile's basis is swapped in a block: all its moments travel, once."""
    units = [n for n in engine.units_of[index][row] if engine.schedule.units[n].columns]
    return len({step for number in units for step in engine.schedule.loads(number)}) / engine.schedule.cycle


def _moments(engine: "Engine", layout: Split, block: Block) -> list[int]:
    """Bytes of a number of all moments of each parameter; before the base has any, of one of each kind."""
    base = engine.base
    usual = base.has_first_moment(engine.group(block.group)) + bool(base.second)
    return [layout.travelling(p, usual) * engine.access.weight(p).itemsize for p in block.params]


def _sums(engine: "Engine", warm: bool) -> int:
    """Lengths of bent updates, and totals of clips: of gradients that are preconditioned, and of those that wait."""
    found = [(stack, _action(engine, stack, b, warm), _action(engine, stack, b, True)) for stack, b in _blocks(engine)]
    bent = [stack for stack, action, _ in found if action is Action.BEND]
    total = len(bent) * bent[0].dtype.itemsize if bent else 0
    for now in (Action.PRECONDITION, Action.BASE):
        clipped = [
            stack
            for stack, action, later in found
            if action is now and later is Action.PRECONDITION and stack.method.trust is not None
        ]
        dtypes = {id(stack.method): stack.dtype for stack in clipped[::-1]}
        total += len(dtypes) * max((dtype.itemsize for dtype in dtypes.values()), default=0)
    return total
