"""Where matrices are while they are worked on: here, whole and on every rank; in `split`, whole at their owners alone.

What is done number by number (hide, save, decay, write back) is done to the *buffer* of a batch, this rank's numbers of
its blocks; what needs matrices goes through `Layout.through`, which gives the work whole matrices, and buffers back.
Legend: k blocks of a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_so.comm.access.whole import Access
from lightning_so.contract.block import Block, Stack
from lightning_so.core.matrices.scratch import Scratch, views
from lightning_so.core.stacks.cohort import Batch

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def _write(engine: "Engine", batch: Batch, tensors: list[Tensor], buffer: Tensor) -> None:
    """Write a buffer into one tensor a parameter, rounding once to their dtype."""
    torch._foreach_copy_(tensors, engine.layout.parts(batch, buffer))


@dataclass
class Job:
    """A change of one block's moments.

    Attributes:
        block: The block.
        states: The optimizer's states of its parameters, this rank's pieces; changed in place.
        change: Changes states of whole tensors in place; done once, where the block's curvature is.
    """

    block: Block
    states: list[dict[str, Any]]
    change: Callable[[list[dict[str, Any]]], None]


@dataclass
class Item:
    """What is to be done to the matrices of a batch.

    Attributes:
        batch: The batch.
        source: Gives the buffer of what the work is done to.
        work: Changes whole matrices (k, M, N) in the stack's dtype; done once, where they are.
        sink: Takes the buffer of the result.
        seen: Whether the source is the gradient, as `look` has shown it.
    """

    batch: Batch
    source: Callable[[], Tensor]
    work: Callable[[Tensor], Tensor]
    sink: Callable[[Tensor], None]
    seen: bool = False


class Layout:
    """Whole matrices on every rank, each of which does the same work on them; or rows that a rank takes for the whole.

    Attributes:
        split: Whether ranks have pieces only.
        access: Where the numbers of parameters are.
        optimizer: The base optimizer, whose moments are asked for.
        keys: Those of moments that it may keep.
        scratch: Work space.
    """

    split = False

    def __init__(self, access: Access, optimizer: Optimizer, keys: Sequence[str]) -> None:
        """Start without work space."""
        self.access, self.optimizer, self.keys, self.scratch = access, optimizer, keys, Scratch()

    # ---------------------------------------------------------------- this rank's numbers

    def weights(self, batch: Batch) -> list[Tensor]:
        """What the base steps on, one tensor a parameter."""
        return [self.access.weight(p) for p in batch.params]

    def gradients(self, batch: Batch) -> list[Tensor]:
        """The gradients of a batch, one tensor a parameter."""
        return [self._piece(p, self.access.grad(p)) for p in batch.params]

    def moments(self, batch: Batch, key: str) -> list[Tensor]:
        """A moment of a batch, one tensor a parameter."""
        return [self._piece(p, self.access.state(self.optimizer, p).get(key)) for p in batch.params]

    def states(self, block: Block) -> list[dict[str, Any]]:
        """The optimizer's states of a block's parameters."""
        return [self.access.state(self.optimizer, p) for p in block.params]

    def _piece(self, param: Tensor, piece: Tensor | None) -> Tensor:
        """An empty piece need not be there."""
        return torch.empty_like(self.access.weight(param)) if piece is None else piece

    # ---------------------------------------------------------------- buffers

    def furnish(self, stack: Stack) -> None:
        """Make room for the saved parameters of a stack: `hidden` and `saved`."""
        count, dtype = len(stack.blocks), self.access.weight(stack.blocks[0].param).dtype
        stack.hidden = torch.zeros(count, *stack.shape, dtype=dtype, device=stack.device)
        stack.saved = [views(row[None], stack.blocks[0].shapes) for row in stack.hidden.unbind(0)]

    def room(self, batch: Batch, slot: int) -> Tensor:
        """An uninitialised buffer of the stack's dtype, shape (k, M, N); see `Scratch.batch`."""
        return self.scratch.batch(batch.stack, len(batch.blocks), slot)

    def fill(self, batch: Batch, tensors: Sequence[Tensor], slot: int) -> Tensor:
        """A buffer with this rank's numbers of a batch's parameters, gradients or moments, one tensor a parameter."""
        buffer = self.room(batch, slot)
        torch._foreach_copy_(self.parts(batch, buffer), list(tensors))
        return buffer

    def parts(self, batch: Batch, buffer: Tensor) -> list[Tensor]:
        """A buffer as views, each in the shape of its parameter on this rank."""
        return views(buffer, batch.blocks[0].shapes)

    def saved(self, batch: Batch) -> Tensor:
        """The buffer of the saved parameters, in their own dtype."""
        return batch.stack.hidden if batch.rows is None else batch.stack.hidden[batch.rows]

    def each(self, batch: Batch, numbers: Tensor) -> Tensor:
        """A number for each block, (k,), in a shape that multiplies a buffer."""
        return numbers[:, None, None]

    def squares(self, batch: Batch, tensors: list[Tensor]) -> Tensor:
        """The sums of squares of each block, (k,), over the numbers that this rank counts; see `total`.

        Args:
            batch: The batch.
            tensors: One a parameter.

        Returns:
            The sums, in the stack's dtype.
        """
        return self.counted(batch.params, tensors, batch.stack.dtype).view(len(batch.blocks), -1).sum(1)

    def counted(self, params: Sequence[Tensor], tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
        """The sum of squares of each tensor, one a parameter, over the numbers that this rank counts; see `total`."""
        return torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype)).square()

    def clip(self, params: Sequence[Tensor], bound: float) -> None:
        """Scale gradients to a norm of at most `bound` over all of them, as `torch.nn.utils.clip_grad_norm_` does."""
        found = {param: grad for param in params if (grad := self.access.grad(param)) is not None}
        squares = self.counted([*found], [*found.values()], torch.float32)
        norm = self.total(squares.sum().reshape(1)).sqrt()
        torch._foreach_mul_([*found.values()], (bound / (norm + 1e-6)).clamp_max(1)[0])

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over ranks of numbers to which each rank has given its part."""
        return numbers

    # ---------------------------------------------------------------- whole matrices

    def look(self, items: Sequence[tuple[Batch, Sequence[Tensor]]], work: Callable[[Batch, Tensor], None]) -> None:
        """Show the gradients of batches, whole, to a function that only reads them."""
        for batch, gradients in items:
            work(batch, self.fill(batch, gradients, 0))

    def forget(self) -> None:
        """Gradients are no longer those that `look` has shown."""

    def through(self, items: Sequence[Item]) -> None:
        """Do the work of all items: one after the other, so that they share one work space."""
        for item in items:
            item.sink(item.work(item.source()).contiguous())

    def move(self, jobs: Sequence[Job]) -> None:
        """Change moments of blocks, in the order of the jobs."""
        for job in jobs:
            job.change(job.states)

    # ---------------------------------------------------------------- moments in files

    def kept(self, blocks: Sequence[Block]) -> list[list[list[str]]]:
        """By block and parameter, the keys of the moments that the base keeps; the same on every rank."""
        return [[_tensors(self.keys, state) for state in self.states(block)] for block in blocks]

    def whole(self, jobs: Sequence[Job]) -> list[list[dict[str, Tensor]]]:
        """Copies of moments, whole and on every rank, to which the jobs' changes were made.

        Args:
            jobs: One a block; their states do not change.

        Returns:
            By job and parameter, the moments by key.
        """
        found = [[{key: s[key].clone() for key in _tensors(self.keys, s)} for s in job.states] for job in jobs]
        for job, states in zip(jobs, found, strict=True):
            job.change(states)
        return found

    def cut(self, block: Block, number: int, whole: Tensor) -> Tensor:
        """What this rank has of a tensor like the block's parameter of that number, in row-major order."""
        return whole


def _tensors(keys: Sequence[str], state: dict[str, Any]) -> list[str]:
    return [key for key in keys if torch.is_tensor(state.get(key))]
