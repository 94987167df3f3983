"""Sharded parameters: matrices are whole at their owners alone, to whom the pieces travel and from whom they return.

All matrices of a stage travel in one all-to-all and return in one: precondition and bend take two a step, rotate four.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_so.comm import Pieces, Sharded, replicated_tensors, within
from lightning_so.contract.block import Block
from lightning_so.core.host import Host
from lightning_so.core.matrices.matrices import Matrices, MatrixWork, MomentChange, alike
from lightning_so.core.matrices.scratch import views
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.core.stacks.stack import Stack


class ShardedMatrices(Matrices):
    """Each rank has pieces of all matrices, and works on those that it owns.

    A buffer is flat: this rank's pieces of the cohort's parameters, one after the other.

    Attributes:
        comm: How pieces travel.
        seen: The gradients that `show` has shown, by block, at the owner.
    """

    sharded = owned = True

    def __init__(self, host: Host, comm: Sharded, *, lean: bool = False) -> None:
        """Nothing has travelled yet."""
        super().__init__(host, lean=lean)
        self.comm, self.seen = comm, dict[Block, Tensor]()
        self._spans: dict[Tensor, tuple[tuple[int, int], ...]] = {}
        self._pieces: dict[Block, list[Pieces]] = {}
        self._counted: dict[Tensor, bool] = {}
        self._kept: dict[Tensor, list[str]] = {}

    def learn(self, params: Sequence[Tensor]) -> None:
        """Tell all ranks which piece of every parameter each has: a collective."""
        self._spans = dict(zip(params, self.comm.spans([self.host.access.span(p) for p in params]), strict=True))
        self._counted = {p: Pieces(of, 0).gives(self.comm.rank) > 0 for p, of in self._spans.items()}

    def pieces(self, block: Block) -> list[Pieces]:
        """Where the numbers of a block's parameters are."""
        if block not in self._pieces:
            spans = [
                self._spans[p] if block.part is None else within(self._spans[p], *block.span) for p in block.params
            ]
            assert block.owner is not None
            self._pieces[block] = [Pieces(of, block.owner) for of in spans]
        return self._pieces[block]

    def travelling(self, param: Tensor, usual: int) -> int:
        """How many moments the base keeps of a parameter, as far as that is known, else `usual`."""
        return len(self._kept[param]) if param in self._kept else usual

    # ---------------------------------------------------------------- buffers, see `Matrices`

    def make_room(self, stack: Stack) -> None:
        """See `Matrices.make_room`: room for this rank's pieces."""
        weights = [self.host.own(block, [self.host.access.weight(p) for p in block.params]) for block in stack.blocks]
        flat = [weight for of_block in weights for weight in of_block]
        stack.hidden = torch.zeros(sum(w.numel() for w in flat), dtype=flat[0].dtype, device=stack.device)
        parts = iter(_parts(stack.hidden, flat))
        stack.saved = [[next(parts) for _ in of_block] for of_block in weights]

    def room(self, cohort: Cohort, slot: int) -> Tensor:
        """See `Matrices.room`: flat."""
        return self.scratch.flat(cohort.stack, sum(saved.numel() for saved in cohort.saved), slot)

    def parts(self, cohort: Cohort, buffer: Tensor) -> list[Tensor]:
        """See `Matrices.parts`."""
        return _parts(buffer, cohort.saved)

    def saved(self, cohort: Cohort) -> Tensor:
        """See `Matrices.saved`."""
        if cohort.rows is None:
            return cohort.stack.hidden
        return torch.cat([saved.reshape(-1) for saved in cohort.saved])

    def per_block(self, cohort: Cohort, numbers: Tensor) -> Tensor:
        """See `Matrices.per_block`."""
        sizes = torch.tensor([saved.numel() for saved in cohort.saved], device=numbers.device)
        return numbers.repeat_interleave(sizes.view(len(cohort.blocks), -1).sum(1))

    def lost(self, buffer: Tensor) -> Tensor:
        """See `Matrices.lost`: number by number."""
        return buffer.isnan()

    def counted(self, params: Sequence[Tensor], tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
        """See `Matrices.counted`: of ranks that have the same piece, the first counts it."""
        squares = super().counted(params, tensors, dtype)
        return squares * torch.tensor([self._counted[param] for param in params], device=squares.device)

    def products(self, cohort: Cohort, first: Tensor, second: Tensor) -> Tensor:
        """See `Matrices.products`."""
        sizes = torch.tensor([saved.numel() for saved in cohort.saved], device=first.device)
        sums = torch.segment_reduce(first * second, "sum", lengths=sizes)
        counted = [self._counted[param] for block in cohort.blocks for param in block.params]
        return (sums * torch.tensor(counted, device=sums.device)).view(len(cohort.blocks), -1).sum(1)

    def total(self, numbers: Tensor) -> Tensor:
        """See `Matrices.total`: one small all-reduce."""
        self.comm.sum(numbers)
        return numbers

    def answers(self, stack: Stack) -> bool:
        """See `Matrices.answers`: the owner."""
        return stack.here

    def answered(self, numbers: Tensor) -> Tensor:
        """See `Matrices.answered`."""
        return self.total(numbers)

    # ---------------------------------------------------------------- there and back

    def show(self, items: Sequence[tuple[Cohort, Sequence[Tensor]]], work: Callable[[Cohort, Tensor], None]) -> None:
        """See `Matrices.show`; owners keep what they have seen until the end of the step."""
        for some in alike(items, lambda item: item[0].stack.dtype):
            local = [[gradient.to(cohort.stack.dtype) for gradient in gradients] for cohort, gradients in some]
            for (cohort, _), X in zip(some, self._bring([cohort for cohort, _ in some], local), strict=True):
                if X is not None:
                    self.seen.update(zip(cohort.blocks, X.unbind(0), strict=True))
                    work(cohort, X)

    def forget(self) -> None:
        """See `Matrices.forget`."""
        self.seen.clear()

    def transform(self, items: Sequence[MatrixWork]) -> None:
        """See `Matrices.transform`: all there in one exchange, and all back in one."""
        for some in alike(items, lambda item: item.cohort.stack.dtype):
            unseen = [item for item in some if not item.seen]
            # Copied: sources share their work space.
            local = [self.parts(item.cohort, item.source().clone()) for item in unseen]
            wholes = zip(unseen, self._bring([item.cohort for item in unseen], local), strict=True)
            brought = {id(item): X for item, X in wholes if X is not None}
            done = dict[int, Tensor]()
            for these in alike((item for item in some if item.cohort.stack.here), lambda item: id(item.work)):
                found = these[0].work(self._known(item.cohort) if item.seen else brought[id(item)] for item in these)
                done.update((id(item), X.contiguous()) for item, X in zip(these, found, strict=True))
            buffers = [torch.empty_like(self.room(item.cohort, 0)) for item in some]
            self._give([item.cohort for item in some], [done.get(id(item)) for item in some], buffers)
            for item, buffer in zip(some, buffers, strict=True):
                item.sink(buffer)

    def change_moments(self, changes: Sequence[MomentChange]) -> None:
        """See `Matrices.change_moments`: all there in one exchange, and all back in one; a block travels once."""
        groups, whole = self._changed(changes)
        for some in groups:
            back = [whole[moment.block][moment.number].get(moment.key) for moment in some]
            self.comm.from_owners(back, [moment.piece for moment in some], [moment.pieces for moment in some])

    def kept(self, blocks: Sequence[Block]) -> list[list[list[str]]]:
        """See `Matrices.kept`: a small all-reduce for blocks that are new here."""
        self._agree({block: self.host.states(block) for block in blocks})
        return [[self._kept.get(param, []) for param in block.params] for block in blocks]

    def whole(self, changes: Sequence[MomentChange]) -> list[list[dict[str, Tensor]]]:
        """See `Matrices.whole`: to the owners in one exchange, and from them to all ranks, on the CPU, in one."""
        groups, whole = self._changed(changes)
        moments = [moment for some in groups for moment in some]
        owned = [[m for m in moments if m.block.owner == rank] for rank in range(self.comm.ranks)]
        tensors = [[whole[m.block][m.number].get(m.key, m.outline) for m in of_rank] for of_rank in owned]
        for of_rank, copies in zip(owned, replicated_tensors(self.comm, tensors), strict=True):
            for m, copy in zip(of_rank, copies, strict=True):
                whole[m.block][m.number][m.key] = copy
        return [whole[block] for change in changes for block in change.blocks]

    def cut(self, block: Block, number: int, whole: Tensor) -> Tensor:
        """See `Matrices.cut`: flat."""
        return self.pieces(block)[number].of(whole, self.comm.rank)

    def _changed(
        self, changes: Sequence[MomentChange]
    ) -> tuple[list[list["_Moment"]], dict[Block, list[dict[str, Tensor]]]]:
        """Moments of blocks by dtype; and whole at the owners, by block, after the changes."""
        states = {block: of for change in changes for block, of in zip(change.blocks, change.states, strict=True)}
        self._agree(states)
        moments = [moment for block, of_block in states.items() for moment in self._moments(block, of_block)]
        groups = list(alike(moments, lambda moment: moment.piece.dtype))
        whole = {block: [dict[str, Tensor]() for _ in block.params] for block in states}
        for some in groups:
            arrived = self.comm.to_owners([moment.piece for moment in some], [moment.pieces for moment in some])
            for moment, tensor in zip(some, arrived, strict=True):
                if tensor is not None:
                    whole[moment.block][moment.number][moment.key] = tensor.view(moment.block.shapes[moment.number])
        for change in changes:
            if change.blocks[0].owner == self.comm.rank:
                change.apply([whole[block] for block in change.blocks])
        return groups, whole

    def _agree(self, states: Mapping[Block, list[dict[str, Any]]]) -> None:
        """Learn which moments the base keeps of parameters that are new here; empty pieces have none to show."""
        params = {
            param: state
            for block, of_block in states.items()
            for param, state in zip(block.params, of_block, strict=True)
            if param not in self._kept
        }
        if not params:
            return
        keys = self.host.keys
        flags = self.comm.anywhere([torch.is_tensor(s.get(key)) for s in params.values() for key in keys])
        for number, param in enumerate(params):
            found = flags[number * len(keys) : (number + 1) * len(keys)]
            if any(found):  # A base that has not stepped yet will have some later.
                self._kept[param] = [key for key, kept in zip(keys, found, strict=True) if kept]

    def _moments(self, block: Block, states: list[dict[str, Any]]) -> Iterator["_Moment"]:
        for number, (param, state, pieces) in enumerate(zip(block.params, states, self.pieces(block), strict=True)):
            for key in self._kept.get(param, []):
                weight = self.host.access.weight(param)
                nothing = torch.empty(0, dtype=weight.dtype, device=weight.device)
                piece = state.get(key)
                yield _Moment(block, number, key, nothing if piece is None else piece, pieces)

    def _known(self, cohort: Cohort) -> Tensor:
        return torch.stack([self.seen[block] for block in cohort.blocks])

    def _bring(self, cohorts: list[Cohort], local: list[list[Tensor]]) -> list[Tensor | None]:
        """Whole matrices (k, M, N) of the cohorts that this rank owns, None of the others."""
        pieces = [p for cohort in cohorts for block in cohort.blocks for p in self.pieces(block)]
        wholes = iter(self.comm.to_owners([part for parts in local for part in parts], pieces))
        found = list[Tensor | None]()
        for cohort, parts in zip(cohorts, local, strict=True):
            arrived = [next(wholes) for _ in parts]
            if not cohort.stack.here:
                found.append(None)
                continue
            X = torch.empty(
                len(cohort.blocks), *cohort.stack.shape, dtype=cohort.stack.dtype, device=cohort.stack.device
            )
            shaped = views(X, cohort.blocks[0].shapes)
            torch._foreach_copy_(
                shaped, [w.view(v.shape) for w, v in zip(arrived, shaped, strict=True) if w is not None]
            )
            found.append(X)
        return found

    def _give(self, cohorts: list[Cohort], wholes: list[Tensor | None], buffers: list[Tensor]) -> None:
        """Write what owners have into the buffers of all ranks."""
        pieces = [p for cohort in cohorts for block in cohort.blocks for p in self.pieces(block)]
        into = [part for cohort, buffer in zip(cohorts, buffers, strict=True) for part in self.parts(cohort, buffer)]
        outgoing = list[Tensor | None]()
        for cohort, X in zip(cohorts, wholes, strict=True):
            outgoing += [None] * len(cohort.params) if X is None else views(X, cohort.blocks[0].shapes)
        self.comm.from_owners(outgoing, into, pieces)


@dataclass
class _Moment:
    """One moment of one parameter: this rank's piece, and where the others are."""

    block: Block
    number: int
    key: str
    piece: Tensor
    pieces: Pieces

    @property
    def outline(self) -> Tensor:
        """Its whole shape, without numbers."""
        return torch.empty(self.block.shapes[self.number], dtype=self.piece.dtype, device="meta")


def _parts(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A flat buffer cut into views of the shapes of others."""
    return [part.view(t.shape) for part, t in zip(buffer.split([t.numel() for t in like]), like, strict=True)]
