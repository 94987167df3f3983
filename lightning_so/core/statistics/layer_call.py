"""Calls of hooked layers: what is remembered of each until the optimizer steps."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import GradientEdge

from lightning_so.contract.block import Block, Tap

#: Calls of a hooked layer that are remembered to find the loss that they belong to.
REMEMBERED = 16


@dataclass
class LayerCall:
    """One call of a hooked layer.

    Attributes:
        where: Stack, row and block, if the block is watched or its rows are kept.
        tap: The layer.
        x: Its input, where a pass of ours needs it; else None.
        rows: Gradient of its output, as it arrives -> beside the input's rows.
        edge: Where the gradient of its output arrives.
        samples: How many its input has.
    """

    where: tuple[int, int, Block] | None
    tap: Tap
    x: Tensor | None
    rows: Callable[[Tensor], Tensor]
    edge: GradientEdge
    samples: int
