"""Where matrices are while they are worked on: here, whole on every rank; in `sharded`, whole at their owners alone.

What is done number by number (hide, save, decay, write back) is done to the *buffer* of a cohort, this rank's numbers
of its blocks; what needs matrices goes through `Matrices.transform`, which gives the work whole matrices, and buffers
back. Legend: k blocks of a cohort.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_so.contract.block import Block
from lightning_so.core.host import Host
from lightning_so.core.matrices.scratch import Scratch, views
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.core.stacks.stack import Stack

#: The optimizer's states of a block's parameters.
States = list[dict[str, Any]]
#: Changes whole matrices (k, M, N) of cohorts, given one after the other: each is there until the next is asked for.
Work = Callable[[Iterator[Tensor]], Iterable[Tensor]]

T = TypeVar("T")


@dataclass
class MomentChange:
    """A change of the moments of blocks of one owner.

    Attributes:
        blocks: The blocks.
        states: Of each, the optimizer's states of its parameters, this rank's pieces; changed in place.
        apply: Changes states of whole tensors in place; done once, where the blocks' curvature is.
    """

    blocks: list[Block]
    states: list[States]
    apply: Callable[[list[States]], None]

    @classmethod
    def of_one(cls, block: Block, states: States, apply: Callable[[States], None]) -> "MomentChange":
        """A change of one block's moments."""
        return cls([block], [states], lambda found: apply(found[0]))


@dataclass
class MatrixWork:
    """What is to be done to the matrices of a cohort.

    Attributes:
        cohort: The cohort.
        source: Gives the buffer of what the work is done to.
        work: Changes whole matrices in the stack's dtype; done once, where they are, for all items that share it.
        sink: Takes the buffer of the result.
        seen: Whether the source is the gradient, as `show` has shown it.
    """

    cohort: Cohort
    source: Callable[[], Tensor]
    work: Work
    sink: Callable[[Tensor], None]
    seen: bool = False


class Matrices:
    """Whole matrices on every rank, each of which does the same work on them; or rows that a rank takes for the whole.

    Attributes:
        sharded: Whether ranks have pieces only.
        owned: Whether owners alone have the curvature of some blocks.
        host: The training.
        scratch: Work space.
        lean: Whether saved weights and work space have room inside a step alone.
    """

    sharded = owned = False

    def __init__(self, host: Host, *, lean: bool = False) -> None:
        """Start without work space."""
        self.host, self.scratch, self.lean = host, Scratch(), lean

    # ---------------------------------------------------------------- this rank's numbers

    def weights(self, cohort: Cohort) -> list[Tensor]:
        """What the base steps on, one tensor for each of `cohort.params`."""
        return self._numbers(cohort, self.host.access.weight)

    def gradients(self, cohort: Cohort) -> list[Tensor]:
        """The gradients of a cohort, one tensor for each of `cohort.params`."""
        grad = self.host.access.grad
        return self._numbers(cohort, lambda p: self._piece(p, grad(p)))

    def moments(self, cohort: Cohort, key: str) -> list[Tensor]:
        """A moment of a cohort, one tensor for each of `cohort.params`."""
        state, optimizer = self.host.access.state, self.host.optimizer
        return self._numbers(cohort, lambda p: self._piece(p, state(optimizer, p).get(key)))

    def _numbers(self, cohort: Cohort, of: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """What a function gives of each parameter, cut into blocks where not all parts of it are in the cohort."""
        if not cohort.cut:
            return [of(param) for param in cohort.params]
        found = list[Tensor]()
        for run in cohort.runs:
            if run.whole:
                found.append(of(run.param))
            else:
                found += self.host.parts(of(run.param), run.blocks)
        return found

    def _piece(self, param: Tensor, piece: Tensor | None) -> Tensor:
        """An empty piece need not be there."""
        return torch.empty_like(self.host.access.weight(param)) if piece is None else piece

    # ---------------------------------------------------------------- buffers

    def make_room(self, stack: Stack) -> None:
        """Make room for the saved parameters of a stack: `hidden` and `saved`."""
        count, dtype = len(stack.blocks), self.host.access.weight(stack.blocks[0].param).dtype
        stack.hidden = torch.zeros(count, *stack.shape, dtype=dtype, device=stack.device)
        stack.saved = [views(row[None], stack.blocks[0].shapes) for row in stack.hidden.unbind(0)]

    def take_room(self, cohorts: Iterable[Cohort]) -> None:
        """Have the room of cohorts' saved parameters, which `give_room` may have given back."""
        for cohort in cohorts if self.lean else ():
            hidden = cohort.stack.hidden
            hidden.untyped_storage().resize_(hidden.nbytes)

    def give_room(self, stacks: Iterable[Stack]) -> None:
        """Between steps: forget gradients; where that is asked for give back what is not needed until the next."""
        self.forget()
        if not self.lean:
            return
        for stack in stacks:
            if stack.slopes is None or not stack.slopes.open:  # The second slope needs what the weights were.
                stack.hidden.untyped_storage().resize_(0)  # Its views stay, and have memory again at the next step.
        self.scratch.clear()

    def room(self, cohort: Cohort, slot: int) -> Tensor:
        """An uninitialised buffer of the stack's dtype, shape (k, M, N); see `Scratch.batch`."""
        return self.scratch.batch(cohort.stack, len(cohort.blocks), slot)

    def fill(self, cohort: Cohort, tensors: Sequence[Tensor], slot: int) -> Tensor:
        """A buffer with this rank's numbers of a cohort, given for each of `cohort.params`."""
        buffer = self.room(cohort, slot)
        torch._foreach_copy_(self.parts(cohort, buffer), list(tensors))
        return buffer

    def parts(self, cohort: Cohort, buffer: Tensor) -> list[Tensor]:
        """A buffer as views, one for each of `cohort.params` in its shape on this rank."""
        if not cohort.joined:
            return views(buffer, cohort.blocks[0].shapes)
        found = list[Tensor]()
        for run, part in zip(cohort.runs, buffer.split([len(run.blocks) for run in cohort.runs]), strict=True):
            found += [part.view(run.saved[0].shape)] if run.joined else views(part, cohort.blocks[0].shapes)
        return found

    def write(self, cohort: Cohort, tensors: list[Tensor], buffer: Tensor) -> None:
        """Write a buffer into tensors, one for each of `cohort.params`, rounding once to their dtype."""
        torch._foreach_copy_(tensors, self.parts(cohort, buffer))

    def saved(self, cohort: Cohort) -> Tensor:
        """The buffer of the saved parameters, in their own dtype."""
        return cohort.stack.hidden if cohort.rows is None else cohort.stack.hidden[cohort.rows]

    def per_block(self, cohort: Cohort, numbers: Tensor) -> Tensor:
        """A number for each block, (k,), in a shape that multiplies a buffer."""
        return numbers[:, None, None]

    def lost(self, buffer: Tensor) -> Tensor:
        """Where a buffer has no numbers, in a shape that spreads over it; a matrix lacks all of them or none."""
        return buffer[:, :1, :1].isnan()

    def squares(self, items: Sequence[tuple[Cohort, list[Tensor]]]) -> list[Tensor]:
        """The sums of squares of each block, (k,), over the numbers that this rank counts; see `total`.

        Args:
            items: Cohorts, and of each one tensor for each of `cohort.params`.

        Returns:
            The sums of every cohort, in its stack's dtype.
        """
        found = dict[int, Tensor]()
        for some in alike(items, lambda item: (item[0].stack.dtype, item[0].stack.device)):
            apart = [self._apart(*item) for item in some]
            params, tensors = ([one for of_cohort in kind for one in of_cohort] for kind in zip(*apart, strict=True))
            sums = self.counted(params, tensors, some[0][0].stack.dtype).split([len(own) for own, _ in apart])
            for (cohort, _), own in zip(some, sums, strict=True):
                found[id(cohort)] = own if len(own) == len(cohort.blocks) else own.view(len(cohort.blocks), -1).sum(1)
        return [found[id(cohort)] for cohort, _ in items]

    def _apart(self, cohort: Cohort, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters and tensors of each block by itself, where one of `cohort.params` serves several."""
        if not cohort.joined:
            return cohort.params, tensors
        params, pieces, given = list[Tensor](), list[Tensor](), iter(tensors)
        for run in cohort.runs:
            of_run = [next(given) for _ in run.saved]
            of_run = self.host.parts(of_run[0], run.blocks) if run.joined else of_run
            params += [run.param] * len(of_run)
            pieces += of_run
        return params, pieces

    def counted(self, params: Sequence[Tensor], tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
        """The sum of squares of each tensor, one a parameter, over the numbers that this rank counts; see `total`."""
        return torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype)).square()

    def clip(self, params: Sequence[Tensor], bound: float) -> None:
        """Scale gradients to a norm of at most `bound` over all of them, as `torch.nn.utils.clip_grad_norm_` does."""
        found = {param: grad for param in params if (grad := self.host.access.grad(param)) is not None}
        squares = self.counted([*found], [*found.values()], torch.float32)
        norm = self.total(squares.sum().reshape(1)).sqrt()
        torch._foreach_mul_([*found.values()], (bound / (norm + 1e-6)).clamp_max(1)[0])

    def products(self, cohort: Cohort, first: Tensor, second: Tensor) -> Tensor:
        """Inner products of two buffers of a cohort by block, (k,), over the numbers that this rank counts."""
        return torch.linalg.vecdot(first.flatten(1), second.flatten(1))

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over ranks of numbers to which each rank has given its part."""
        return numbers

    def answers(self, stack: Stack) -> bool:
        """Whether this rank gives its part of `answered` for the blocks of a stack."""
        return True

    def answered(self, numbers: Tensor) -> Tensor:
        """The sum over ranks of numbers to which one rank has given those of a stack: what its curvature tells."""
        return numbers

    # ---------------------------------------------------------------- whole matrices

    def show(self, items: Sequence[tuple[Cohort, Sequence[Tensor]]], work: Callable[[Cohort, Tensor], None]) -> None:
        """Show the gradients of cohorts, whole, to a function that only reads them."""
        for cohort, gradients in items:
            work(cohort, self.fill(cohort, gradients, 0))

    def forget(self) -> None:
        """Gradients are no longer those that `show` has shown."""

    def transform(self, items: Sequence[MatrixWork]) -> None:
        """Do the work of all items: one after the other, so that they share one work space."""
        for some in alike(items, lambda item: id(item.work)):
            done = some[0].work(item.source() for item in some)
            for item, X in zip(some, done, strict=True):
                item.sink(X.contiguous())

    def change_moments(self, changes: Sequence[MomentChange]) -> None:
        """Change moments of blocks, in their order."""
        for change in changes:
            change.apply(change.states)

    # ---------------------------------------------------------------- moments in files

    def kept(self, blocks: Sequence[Block]) -> list[list[list[str]]]:
        """By block and parameter, the keys of the moments that the base keeps; the same on every rank."""
        return [[list(self.host.moments(state)) for state in self.host.states(block)] for block in blocks]

    def whole(self, changes: Sequence[MomentChange]) -> list[list[dict[str, Tensor]]]:
        """Copies of moments, whole and on every rank, to which the changes were made.

        Args:
            changes: One of each block; their states do not change.

        Returns:
            By block and parameter, the moments by key.
        """
        copied = list[MomentChange]()
        for change in changes:
            copies = [
                [{key: value.clone() for key, value in self.host.moments(state).items()} for state in states]
                for states in change.states
            ]
            copied.append(replace(change, states=copies))
        self.change_moments(copied)
        return [states for change in copied for states in change.states]

    def cut(self, block: Block, number: int, whole: Tensor) -> Tensor:
        """What this rank has of a tensor like the block's parameter of that number, in row-major order."""
        return whole


def alike(items: Iterable[T], key: Callable[[T], Hashable]) -> Iterator[list[T]]:
    """The items by a key, in order of first appearance, which is the same on every rank."""
    found: dict[Hashable, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    yield from found.values()
