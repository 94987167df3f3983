"""What is known of the slopes along bent updates, and what the second one of a step that was made still needs."""

import warnings
from typing import Any

from lightning_so.contract.method import Action
from lightning_so.core.assembly import Parts

#: Slopes by block.
Written = dict[str, dict[str, Any]]


def written(parts: Parts, *, exact: bool = True) -> Written | None:
    """Slopes by block, where there are any.

    Of a step whose second slope is still to come the weights before it are kept too. Where ranks have pieces of them
    it is dropped instead, here as in the run that goes on: writing is a collective there.

    Args:
        parts: Those of an engine, between steps.
        exact: Whether those weights are kept.

    Returns:
        Copies; None where bent updates keep the base's lengths.
    """
    if all(stack.slopes is None for stack in parts.stacks):
        return None
    found: Written = {}
    for stack in parts.stacks:
        slopes = stack.slopes
        if slopes is None or not slopes.used:
            continue
        if parts.matrices.sharded:
            slopes.drop()
        numbers, moved = slopes.numbers.tolist(), slopes.opened[:, 1].tolist()
        for row, block in enumerate(stack.blocks):
            found[block.name] = {"numbers": numbers[row]}
            if exact and slopes.open and moved[row] > 0:
                found[block.name]["before"] = [saved.clone() for saved in stack.saved[row]]
    return found


def recall(parts: Parts, saved: Written | None) -> None:
    """Go on with slopes of `written`, of the blocks that are here; or with the base's lengths, as it was written.

    Args:
        parts: Those of an engine.
        saved: The slopes; None where updates had the base's lengths, as in files of before.
    """
    measured = [stack for stack in parts.stacks if stack.slopes is not None]
    if saved is None:
        if measured and _bends(parts):
            warnings.warn(
                "the state goes on as it was written, with bent updates of the base's lengths (lengths='base'). Start "
                "without the state for measured ones.",
                stacklevel=2,
            )
        for stack in measured:
            stack.slopes = None
        return
    # Of first slopes each rank has a part: the first has all that is in a file.
    first = not parts.matrices.sharded or parts.host.team.rank == 0
    for stack in measured:
        slopes = stack.slopes
        assert slopes is not None
        slopes.drop()
        for row, block in enumerate(stack.blocks):
            if block.name not in saved:
                continue
            before = saved[block.name].get("before")
            slopes.recall(row, saved[block.name]["numbers"], opened=before is not None and first)
            if before is not None:
                slopes.open = True
                for number, (piece, whole) in enumerate(zip(stack.saved[row], before, strict=True)):
                    piece.copy_(parts.matrices.cut(block, number, whole).view_as(piece))


def _bends(parts: Parts) -> bool:
    """Whether any block is bent at the next step."""
    return any(
        stack.action(parts.host, block, warm) is Action.BEND
        for stack, flags in zip(parts.stacks, parts.roster.warm, strict=True)
        for block, warm in zip(stack.blocks, flags, strict=True)
    )
