"""One matrix of one parameter, by its fully qualified name, and stacks of alike ones."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_so.contract.loss_unit import Written
from lightning_so.contract.memory import Memory
from lightning_so.layers.registry import Layer


@dataclass(eq=False)
class Tap:
    """Where a block's rows come from.

    Attributes:
        module: The layer whose weight the block is.
        layer: How its type is seen as matrices.
        groups: How many equal matrices the weight holds along its first dimension.
        bias: What may be its last column.
    """

    module: nn.Module
    layer: Layer
    groups: int
    bias: nn.Parameter | None


@dataclass(frozen=True)
class Part:
    """Which of several matrices of one shape a block is: a parameter may hold E experts, or three projections.

    They lie one behind the other in the parameter's row-major order.

    Attributes:
        parameter: Full name of the parameter.
        index: Which it is.
        count: How many there are.
        at: Index of its numbers in a tensor like the whole parameter.
        whole: Shape of the whole parameter.
    """

    parameter: str
    index: int
    count: int
    at: tuple[int | slice, ...]
    whole: torch.Size


@dataclass(eq=False)
class Block:
    """A parameter, or one of its equal parts, seen as a matrix.

    The first dimension of more than one entry is the rows, the rest are folded into the columns. A bias that belongs to
    it is the last column.

    Attributes:
        name: Fully qualified name, wrappers stripped, of a part with its index ("experts.w[3]"); the key of everything
            that is stored.
        param: The parameter.
        group: Index of its param group in the optimizer.
        role: "hidden", "embedding" or "head".
        rows: Rows of the matrix.
        cols: Columns of the matrix.
        shape: Shape of the whole parameter or part, whatever of it is on this rank.
        bias: The parameter that is the last column, or None.
        tap: The layer, for methods that need its rows.
        position: Its number in the plan, which does not depend on the world size.
        owner: The rank that alone has its curvature and works on it; None where every rank does.
        call: Number of the call of the optimizer's step that updates it; 0 where one call updates all.
        part: Which part of the parameter it is; None for all of it.
        memory: How curvature is to hold less; None for all of it in full.
    """

    name: str
    param: nn.Parameter
    group: int
    role: str
    rows: int
    cols: int
    shape: torch.Size
    bias: nn.Parameter | None = None
    tap: Tap | None = None
    position: int = 0
    owner: int | None = None
    call: int = 0
    part: Part | None = None
    memory: Memory | None = None

    @property
    def parameter(self) -> str:
        """Full name of the parameter that it is, or is a part of."""
        return self.name if self.part is None else self.part.parameter

    @property
    def span(self) -> tuple[int, int]:
        """The first number of the whole parameter that it has, and the one after the last, in row-major order."""
        size = self.shape.numel()
        first = 0 if self.part is None else self.part.index * size
        return first, first + size

    @property
    def shapes(self) -> list[torch.Size]:
        """Shapes of its whole parameters, or of its part."""
        return [self.shape] if self.bias is None else [self.shape, torch.Size([self.rows])]

    @property
    def params(self) -> list[nn.Parameter]:
        """The parameters of the matrix, in the order of its columns."""
        return [self.param] if self.bias is None else [self.param, self.bias]

    @property
    def one(self) -> float | None:
        """What the bias' input is: one, and zero while the bias is frozen; None without a bias."""
        return None if self.bias is None else float(self.bias.requires_grad)

    @property
    def grouped(self) -> tuple[int, int, int]:
        """Groups, rows of each, columns."""
        groups = self.tap.groups if self.tap else 1
        return groups, self.rows // groups, self.cols

    @property
    def kept(self) -> tuple[bool, bool]:
        """Which sides, rows and columns, have a basis: both, or the shorter one; of a square matrix the columns."""
        short = self.memory is not None and self.memory.short
        return not short or self.rows < self.cols, not short or self.cols <= self.rows

    @property
    def edge(self) -> bool:
        """Whether the block is at the edge of the network (an embedding or the output head)."""
        return self.role != "hidden"


def parts(whole: Tensor, blocks: Sequence[Block]) -> list[Tensor]:
    """The numbers of blocks that are parts of one parameter.

    Args:
        whole: The parameter, or its gradient or moment, in any strides.
        blocks: Blocks of that parameter.

    Returns:
        Views, each in the shape of its block.
    """
    mine = [block.part for block in blocks if block.part is not None]
    if len(mine) == 1 or not whole.is_contiguous():
        return [whole[part.at] for part in mine]
    found = whole.view(-1, *blocks[0].shape).unbind(0)  # one call for all of them
    return [found[part.index] for part in mine]


@dataclass(eq=False)
class StackSpec:
    """Blocks of one method, shape, dtype, device, role and owner: their tensors live in one batch, one call serves all.

    Attributes:
        blocks: The blocks, in registration order; B of them.
        dtype: Of the factor mathematics: float32, or float64 for a float64 model.
        device: Where the parameters are.
        alike: Blocks that would be in the stack if all had one owner.
        here: Whether this rank works on its matrices.
        shared: Whether every rank has its curvature, not only those that work on its matrices.
    """

    blocks: list[Block]
    dtype: torch.dtype
    device: torch.device
    alike: int = 1
    here: bool = True
    shared: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of every matrix of the stack."""
        return self.blocks[0].rows, self.blocks[0].cols

    @property
    def edge(self) -> bool:
        """Whether its blocks are at the edge of the network."""
        return self.blocks[0].edge

    @property
    def owner(self) -> int | None:
        """The rank that alone works on its matrices; None where every rank does."""
        return self.blocks[0].owner

    @property
    def parts(self) -> int:
        """Parameters of each matrix: 2 with a bias, else 1."""
        return len(self.blocks[0].params)

    @property
    def packed(self) -> bool:
        """Whether triangles are kept of what is symmetric."""
        return self.blocks[0].memory is not None

    @property
    def of_bases(self) -> torch.dtype:
        """In what bases are kept."""
        memory = self.blocks[0].memory
        return torch.float16 if memory is not None and memory.half else self.dtype

    @property
    def home(self) -> torch.device:
        """Where its curvature is: tensors of a rank that has none have a shape and no numbers."""
        return self.device if self.here or self.shared else torch.device("meta")


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a layer in a micro-batch.

    Attributes:
        x: Its input.
        g: Gradient in its output.
        unit: What makes it that of one sample's loss.
        terms: Loss terms of the pass; 0 where another use of the layer has told them.
        step: Steps made; decides what is drawn.
        written: How the loss is written; None where another use has told it, and where nobody asks.
    """

    x: Tensor
    g: Tensor
    unit: Tensor | float
    terms: Tensor | float
    step: int
    written: Written | None = None


def parameter_of(block: str) -> str:
    """See `Block.parameter`, of a block of a state, of which the name alone is known.

    Args:
        block: The block's name.

    Returns:
        The parameter's.

    Example:
        >>> parameter_of("qkv.weight[2]")
        'qkv.weight'
    """
    return re.sub(r"\[\d+\]$", "", block)
