"""One matrix of one parameter, by its fully qualified name, and stacks of equal ones."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.layers.registry import Layer

if TYPE_CHECKING:
    from lightning_so.core.method import Method


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


@dataclass(eq=False)
class Block:
    """A parameter seen as a matrix: the first dimension is the rows, the rest are folded into the columns.

    A bias that belongs to it is the last column.

    Attributes:
        name: Fully qualified name, wrappers stripped; the key of everything that is stored.
        param: The parameter.
        group: Index of its param group in the optimizer.
        role: "hidden", "embedding" or "head".
        rows: Rows of the matrix.
        cols: Columns of the matrix.
        method: What works on it.
        bias: The parameter that is the last column, or None.
        tap: The layer, for methods that need its rows.
    """

    name: str
    param: nn.Parameter
    group: int
    role: str
    rows: int
    cols: int
    method: "Method"
    bias: nn.Parameter | None = None
    tap: Tap | None = None

    @property
    def params(self) -> list[nn.Parameter]:
        """The parameters of the matrix, in the order of its columns."""
        return [self.param] if self.bias is None else [self.param, self.bias]

    @property
    def grouped(self) -> tuple[int, int, int]:
        """Groups, rows of each, columns."""
        groups = self.tap.groups if self.tap else 1
        return groups, self.rows // groups, self.cols

    def states(self, optimizer: Optimizer) -> list[dict]:
        """The optimizer's states of its parameters."""
        return [optimizer.state.get(p, {}) for p in self.params]

    @property
    def live(self) -> bool:
        """Whether all of it has a gradient."""
        return all(p.grad is not None for p in self.params)

    @property
    def edge(self) -> bool:
        """Whether the block is at the edge of the network (an embedding or the output head)."""
        return self.role != "hidden"


@dataclass(eq=False)
class Stack:
    """Blocks of one method, shape, dtype, device and role: their tensors live in one batch, one call serves them all.

    Attributes:
        blocks: The blocks, in registration order; B of them.
        hidden: The saved parameters p0, shape (B, rows, cols), the parameters' dtype.
        saved: Views of `hidden`, by block one a parameter, in its own shape.
        stats: What the method keeps, opaque to the engine.
        kinds: Of which kinds the method is, as far as was asked.
    """

    blocks: list[Block]
    hidden: Tensor
    saved: list[list[Tensor]] = field(default_factory=list)
    stats: Any = None
    kinds: dict[type, bool] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of every matrix of the stack."""
        return self.blocks[0].rows, self.blocks[0].cols

    @property
    def method(self) -> "Method":
        """The method of all its blocks."""
        return self.blocks[0].method

    @property
    def parts(self) -> int:
        """Parameters of each matrix: 2 with a bias, else 1."""
        return len(self.blocks[0].params)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the factor mathematics: float32, or float64 for a float64 model."""
        return torch.promote_types(self.hidden.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the stack lives."""
        return self.blocks[0].param.device


def stack_blocks(blocks: list[Block]) -> list[Stack]:
    """Group blocks that one batched call can serve, in order of first appearance."""
    groups: dict[tuple, list[Block]] = {}
    for block in blocks:
        p = block.param
        layer = block.tap and (id(block.tap.layer), block.tap.groups)
        matrix = (block.rows, block.cols, p.shape, p.dtype, p.device)
        key = (id(block.method), *matrix, block.edge, block.bias is None, layer)
        groups.setdefault(key, []).append(block)
    stacks = []
    for members in groups.values():
        first = members[0].param
        hidden = torch.zeros(len(members), members[0].rows, members[0].cols, dtype=first.dtype, device=first.device)
        saved = [views(row[None], block.params) for row, block in zip(hidden.unbind(0), members, strict=True)]
        stacks.append(Stack(members, hidden, saved))
    return stacks


class Scratch:
    """Work space that all stacks of a device share, so that no step allocates for gathering."""

    def __init__(self) -> None:
        """Start empty; grows to the largest stack."""
        self._room: dict[tuple[torch.device, torch.dtype, int], Tensor] = {}

    def gather(self, stack: Stack, tensors: list[Tensor], slot: int) -> Tensor:
        """Copy parameter-shaped tensors of a stack's blocks into one batch of the stack's compute dtype.

        The copy handles strides, folding and dtype: the batch is contiguous, its views have the parameter's shape.

        Args:
            stack: The stack whose shape applies.
            tensors: Those of k blocks, one a parameter, each of its shape.
            slot: Which work space; two gathers with the same slot overwrite each other.

        Returns:
            The batch, shape (k, rows, cols), valid until the next gather with this slot.
        """
        batch = self.like(stack, len(tensors) // stack.parts, slot)
        torch._foreach_copy_(views(batch, tensors), tensors)
        return batch

    def like(self, stack: Stack, count: int, slot: int) -> Tensor:
        """Uninitialised space for `count` matrices of a stack, shape (count, rows, cols)."""
        rows, cols = stack.shape
        space = self._space(stack, slot, len(stack.blocks) * rows * cols)
        return space[: count * rows * cols].view(count, rows, cols)

    def _space(self, stack: Stack, slot: int, size: int) -> Tensor:
        key = (stack.device, stack.dtype, slot)
        room = self._room.get(key)
        if room is None or room.numel() < size:
            room = self._room[key] = torch.empty(size, dtype=stack.dtype, device=stack.device)
        return room

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(room.nbytes for room in self._room.values())


def views(batch: Tensor, like: list[Tensor] | list[nn.Parameter]) -> list[Tensor]:
    """The matrices of a contiguous batch, each in the shape of its counterpart in `like`.

    Args:
        batch: The matrices, shape (k, rows, cols).
        like: k tensors; or 2 k, weights and biases in turn: a bias is the last column.

    Returns:
        Views, one for each of `like`.
    """
    if len(like) == len(batch):
        return [row.view(tensor.shape) for row, tensor in zip(batch.unbind(0), like, strict=True)]
    found = []
    for row, weight in zip(batch.unbind(0), like[::2], strict=True):
        found += [row[:, :-1].view(weight.shape), row[:, -1]]
    return found


def scatter(batch: Tensor, into: list[Tensor]) -> None:
    """Write the matrices of a batch into parameter-shaped tensors in place, rounding once to their dtype."""
    torch._foreach_copy_(into, views(batch.contiguous(), into))
