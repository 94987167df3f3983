"""Where the blocks of a cohort lie in parameters: number by number one tensor serves all parts of one."""

from dataclasses import dataclass

from torch import Tensor

from lightning_so.contract.block import Block
from lightning_so.core.stacks.stack import Stack


@dataclass(frozen=True, eq=False)
class Run:
    """Blocks in a row that are in one parameter, or one of the parameters of a block.

    Attributes:
        param: The parameter.
        blocks: The blocks.
        whole: Whether they are all of it: then one tensor serves them, else each has one.
        saved: Where the parameter is saved, one a tensor.
    """

    param: Tensor
    blocks: list[Block]
    whole: bool
    saved: list[Tensor]

    @property
    def joined(self) -> bool:
        """Whether one tensor serves several blocks."""
        return len(self.blocks) > len(self.saved)


def runs(stack: Stack, rows: list[int]) -> list[Run]:
    """The runs of some blocks of a stack.

    Args:
        stack: The stack.
        rows: Their places in it, in order.

    Returns:
        The runs, in the order of the blocks.
    """
    found, at = list[Run](), 0
    while at < len(rows):
        row, block = rows[at], stack.blocks[rows[at]]
        if block.part is None:
            named = zip(block.params, stack.saved[row], strict=True)
            found += [Run(param, [block], True, [saved]) for param, saved in named]
            at += 1
            continue
        end = at
        while end < len(rows) and stack.blocks[rows[end]].param is block.param:
            end += 1
        blocks = [stack.blocks[row] for row in rows[at:end]]
        whole = stack.whole and len(blocks) == block.part.count
        saved = [s for row in rows[at:end] for s in stack.saved[row]]
        if whole:  # The blocks of a parameter follow each other in the stack.
            saved = [stack.hidden[row : row + len(blocks)].view(block.part.whole)]
        found.append(Run(block.param, blocks, whole, saved))
        at = end
    return found
