"""What curvature of a stack a method keeps, in shapes, before any of it is there."""

from typing import Any

import torch

from lightning_so.actions.moments import Base
from lightning_so.contract.block import StackSpec
from lightning_so.contract.memory import held
from lightning_so.core.stacks.stack import Stack


def outline(stack: Stack, base: Base) -> Any:
    """What the method keeps of a stack, in tensors without numbers."""
    spec = StackSpec(stack.blocks, stack.dtype, torch.device("meta"), here=False, shared=False)
    return stack.method.init(spec, base)


def curvature_of(stack: Stack, base: Base) -> int:
    """Bytes of what the method keeps of each block of a stack."""
    return sum(tensor.nbytes for tensor in held(outline(stack, base))) // len(stack.blocks)


def needed(stack: Stack, base: Base) -> bool:
    """Whether every rank needs the curvature of a stack, to observe its rows."""
    return stack.tapped is not None and stack.tapped.needed_by_all(base)
