"""Blocks of one method and shape, with all that is kept of them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lightning_so.comm.access.whole import Access
from lightning_so.contract.block import Block, Stack
from lightning_so.contract.method import Observer, Rotator, Solver, Tapped

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def turns(engine: "Engine", stack: Stack) -> bool:
    """Whether the moments of a stack's warm blocks are in its bases: those of preconditioned gradients stay plain."""
    return rotator(stack) is not None and not engine.base.linear


def stack_blocks(blocks: list[Block], access: Access, rank: int | None = None) -> list[Stack]:
    """Group blocks that one batched call can serve, in order of first appearance.

    Args:
        blocks: The blocks.
        access: Where their numbers are.
        rank: This rank, where each block has an owner who alone works on it; None where all ranks work on all.

    Returns:
        The stacks, without room for saved parameters and without statistics.
    """
    kinds: dict[tuple, list[Block]] = {}
    for block in blocks:
        weight = access.weight(block.param)
        layer = block.tap and (id(block.tap.layer), block.tap.groups)
        matrix = (block.rows, block.cols, block.shape, weight.dtype, weight.device)
        kinds.setdefault((id(block.method), *matrix, block.edge, block.bias is None, layer), []).append(block)
    stacks = []
    for alike in kinds.values():
        weight = access.weight(alike[0].param)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        apart: dict[tuple[int, int], list[Block]] = {}
        for block in alike:
            apart.setdefault((block.owner, block.call), []).append(block)
        for (owner, _), members in apart.items():
            stacks.append(Stack(members, dtype, weight.device, len(alike), rank in (None, owner), rank is None))
    return stacks


def _is(stack: Stack, kind: Any) -> bool:
    """Whether a stack's method is of a kind: asked once, since a protocol's members take long to compare."""
    if kind not in stack.kinds:
        stack.kinds[kind] = isinstance(stack.method, kind)
    return stack.kinds[kind]


def observer(stack: Stack) -> Observer | None:
    """The method of a stack, if it observes gradients."""
    return cast(Observer, stack.method) if _is(stack, Observer) else None


def tapped(stack: Stack) -> Tapped | None:
    """The method of a stack, if it observes rows."""
    return cast(Tapped, stack.method) if _is(stack, Tapped) else None


def solver(stack: Stack) -> Solver | None:
    """The method of a stack, if it has units."""
    return cast(Solver, stack.method) if _is(stack, Solver) else None


def rotator(stack: Stack) -> Rotator | None:
    """The method of a stack, if it rotates."""
    return cast(Rotator, stack.method) if _is(stack, Rotator) else None


def solving(stack: Stack) -> Solver:
    """The method of a stack that has been given a unit."""
    found = solver(stack)
    assert found is not None, f"{type(stack.method).__name__} has no units"
    return found


def turning(stack: Stack) -> Rotator:
    """The method of a stack that is being rotated."""
    found = rotator(stack)
    assert found is not None, f"{type(stack.method).__name__} has no bases"
    return found


def named_tensors(stack: Stack) -> Iterator[tuple[str, Tensor]]:
    """The tensors a method keeps of a stack, each of shape (B, ...), under names that do not depend on the stack."""
    if stack.stats is not None:
        yield from stack.method.tensors(stack.stats)
