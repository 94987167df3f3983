"""Curvature with its owner under DDP: who has it turns gradients and updates, and the results go to all.

Weights, gradients and moments are whole and equal on every rank, so that nothing travels to an owner; all that owners
have done in a stage travels from them in one padded all-gather.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_so.comm import replicated_tensors
from lightning_so.contract.block import Block
from lightning_so.core.matrices.matrices import Matrices, MatrixWork, MomentChange, States, alike
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.core.stacks.stack import Stack


class OwnedMatrices(Matrices):
    """Matrices that are whole on every rank, some of which their owners alone work on, see `Memory.share`."""

    owned = True

    def answers(self, stack: Stack) -> bool:
        """See `Matrices.answers`: the owner; of what all ranks work on, the first."""
        return self.host.team.rank == (stack.owner or 0)

    def answered(self, numbers: Tensor) -> Tensor:
        """See `Matrices.answered`: one small all-reduce."""
        self.host.team.sum(numbers)
        return numbers

    def show(self, items: Sequence[tuple[Cohort, Sequence[Tensor]]], work: Callable[[Cohort, Tensor], None]) -> None:
        """See `Matrices.show`: where the curvature is."""
        super().show([item for item in items if item[0].stack.here], work)

    def transform(self, items: Sequence[MatrixWork]) -> None:
        """See `Matrices.transform`; what owners have done goes to all."""
        super().transform([item for item in items if item.cohort.stack.owner is None])
        alone = [item for item in items if item.cohort.stack.owner is not None]
        for some in alike(alone, lambda item: item.cohort.stack.device):
            done = dict[int, Tensor]()
            for these in alike((item for item in some if item.cohort.stack.here), lambda item: id(item.work)):
                found = these[0].work(item.source() for item in these)
                # Copied: it may be in the work space that the next one is worked on in.
                done.update((id(item), X.clone()) for item, X in zip(these, found, strict=True))
            known = [(item.cohort.stack.owner, done.get(id(item), _outline(item.cohort))) for item in some]
            for item, X in zip(some, self._everywhere(known, some[0].cohort.stack.device), strict=True):
                item.sink(X)

    def change_moments(self, changes: Sequence[MomentChange]) -> None:
        """See `Matrices.change_moments`; a block that owners have changed travels once."""
        super().change_moments([change for change in changes if change.blocks[0].owner in (None, self.host.team.rank)])
        states = {block: of for change in changes for block, of in zip(change.blocks, change.states, strict=True)}
        alone = [(block, moment) for block, of in states.items() for moment in self._of_owner(block, of)]
        for some in alike(alone, lambda item: item[1].device):
            copies = self._everywhere([(block.owner, moment) for block, moment in some], some[0][1].device)
            for (block, moment), copy in zip(some, copies, strict=True):
                if block.owner != self.host.team.rank:
                    moment.copy_(copy)

    def _of_owner(self, block: Block, states: States) -> list[Tensor]:
        """The moments of a block that one rank alone works on."""
        moments = [moment for state in states for moment in self.host.moments(state).values()]
        return [] if block.owner is None else moments

    def _everywhere(self, tensors: Sequence[tuple[int | None, Tensor]], device: torch.device) -> list[Tensor]:
        """Copies of what owners have; of other ranks' tensors the shapes are looked at alone."""
        ranks = range(self.host.team.ranks)
        of_ranks = [[tensor for owner, tensor in tensors if owner == rank] for rank in ranks]
        copies = [iter(of_rank) for of_rank in replicated_tensors(self.host.team, of_ranks, device)]
        return [next(copies[owner]) for owner, _ in tensors if owner is not None]


def _outline(cohort: Cohort) -> Tensor:
    """The shape of a cohort's matrices, without numbers."""
    return torch.empty(len(cohort.blocks), *cohort.stack.shape, dtype=cohort.stack.dtype, device="meta")
