"""Bytes that curvature, saved weights and work space hold."""

from lightning_so.contract.memory import held
from lightning_so.core.matrices.matrices import Matrices
from lightning_so.core.schedule.units import Units


def state_bytes(units: Units, matrices: Matrices) -> int:
    """Extra memory held now: factors, windows, bases, saved parameters and work space."""
    saved = sum(stack.hidden.untyped_storage().nbytes() for stack in units.stacks)
    return curvature_bytes(units) + saved + matrices.scratch.nbytes()


def curvature_bytes(units: Units) -> int:
    """Of it, factors, windows and what is solved."""
    # Of blocks that others work on only the shapes are known here; in a plan, of all blocks.
    return sum(
        tensor.nbytes
        for stack in units.stacks
        for tensor in held(stack.stats)
        if stack.here or stack.shared or not tensor.is_meta
    )


def costs(units: Units, ranks: int) -> dict[str, tuple[int, list[int]]]:
    """By parameter, the extra bytes held for its blocks (work space apart) and, on several ranks, their units' owners.

    Args:
        units: The units of all blocks.
        ranks: Those that share the work.

    Returns:
        Both; where parameters are sharded, bytes on all ranks together.
    """
    found = dict[str, tuple[int, list[int]]]()
    for index, stack in enumerate(units.stacks):
        rows, cols = stack.shape
        hidden = 0 if stack.packed else len(stack.blocks) * rows * cols * stack.hidden.itemsize
        size = hidden + sum(tensor.nbytes for tensor in held(stack.stats))
        for row, block in enumerate(stack.blocks):
            owners = {units.schedule.owner[number] for number in units.of_block((index, row))} if ranks > 1 else set()
            so_far, others = found.get(block.parameter, (0, []))
            found[block.parameter] = so_far + size // len(stack.blocks), sorted(owners.union(others))
    return found
