"""Sharded parameters: matrices are whole at their owners alone, to whom the pieces travel and from whom they return.

All matrices of a stage travel in one all-to-all and return in one: precondition and bend take two a step, rotate four.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_so.comm.access.whole import Access
from lightning_so.comm.local import spread
from lightning_so.comm.pieces import Pieces
from lightning_so.comm.sharded import Sharded
from lightning_so.contract.block import Block, Stack
from lightning_so.core.matrices.matrices import Item, Job, Layout
from lightning_so.core.matrices.scratch import views
from lightning_so.core.stacks.cohort import Batch
from lightning_so.errors import ConfigError

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


T = TypeVar("T")


class Split(Layout):
    """Each rank has pieces of all matrices, and works on those that it owns.

    A buffer is flat: this rank's pieces of the batch's parameters, one after the other.

    Attributes:
        comm: How pieces travel.
        seen: The gradients that `look` has shown, by block, at the owner.
    """

    split = True

    def __init__(self, access: Access, optimizer: Optimizer, comm: Sharded, keys: Sequence[str]) -> None:
        """Nothing has travelled yet; `keys` are those of moments that the base may keep."""
        super().__init__(access, optimizer, keys)
        self.comm, self.seen = comm, dict[Block, Tensor]()
        self._spans: dict[Tensor, tuple[tuple[int, int], ...]] = {}
        self._pieces: dict[Block, list[Pieces]] = {}
        self._counted: dict[Tensor, bool] = {}
        self._kept: dict[Tensor, list[str]] = {}

    def learn(self, params: Sequence[Tensor]) -> None:
        """Tell all ranks which piece of every parameter each has: a collective."""
        self._spans = dict(zip(params, self.comm.spans([self.access.span(p) for p in params]), strict=True))
        self._counted = {p: Pieces(of, 0).gives(self.comm.rank) > 0 for p, of in self._spans.items()}

    def pieces(self, block: Block) -> list[Pieces]:
        """Where the numbers of a block's parameters are."""
        if block not in self._pieces:
            self._pieces[block] = [Pieces(self._spans[p], block.owner) for p in block.params]
        return self._pieces[block]

    def travelling(self, param: Tensor, usual: int) -> int:
        """How many moments the base keeps of a parameter, as far as that is known, else `usual`."""
        return len(self._kept[param]) if param in self._kept else usual

    # ---------------------------------------------------------------- buffers, see `Layout`

    def furnish(self, stack: Stack) -> None:
        """See `Layout.furnish`: room for this rank's pieces."""
        weights = [[self.access.weight(p) for p in block.params] for block in stack.blocks]
        flat = [weight for of_block in weights for weight in of_block]
        stack.hidden = torch.zeros(sum(w.numel() for w in flat), dtype=flat[0].dtype, device=stack.device)
        parts = iter(_parts(stack.hidden, flat))
        stack.saved = [[next(parts) for _ in of_block] for of_block in weights]

    def room(self, batch: Batch, slot: int) -> Tensor:
        """See `Layout.room`: flat."""
        return self.scratch.flat(batch.stack, sum(saved.numel() for saved in batch.saved), slot)

    def parts(self, batch: Batch, buffer: Tensor) -> list[Tensor]:
        """See `Layout.parts`."""
        return _parts(buffer, batch.saved)

    def saved(self, batch: Batch) -> Tensor:
        """See `Layout.saved`."""
        if batch.rows is None:
            return batch.stack.hidden
        return torch.cat([saved.reshape(-1) for saved in batch.saved])

    def each(self, batch: Batch, numbers: Tensor) -> Tensor:
        """See `Layout.each`."""
        sizes = torch.tensor([saved.numel() for saved in batch.saved], device=numbers.device)
        return numbers.repeat_interleave(sizes.view(len(batch.blocks), -1).sum(1))

    def counted(self, params: Sequence[Tensor], tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
        """See `Layout.counted`: of ranks that have the same piece, the first counts it."""
        squares = super().counted(params, tensors, dtype)
        return squares * torch.tensor([self._counted[param] for param in params], device=squares.device)

    def total(self, numbers: Tensor) -> Tensor:
        """See `Layout.total`: one small all-reduce."""
        self.comm.sum(numbers)
        return numbers

    # ---------------------------------------------------------------- there and back

    def look(self, items: Sequence[tuple[Batch, Sequence[Tensor]]], work: Callable[[Batch, Tensor], None]) -> None:
        """See `Layout.look`; owners keep what they have seen until the end of the step."""
        for some in _alike(items, lambda item: item[0].stack.dtype):
            local = [[gradient.to(batch.stack.dtype) for gradient in gradients] for batch, gradients in some]
            for (batch, _), X in zip(some, self._bring([batch for batch, _ in some], local), strict=True):
                if X is not None:
                    self.seen.update(zip(batch.blocks, X.unbind(0), strict=True))
                    work(batch, X)

    def forget(self) -> None:
        """See `Layout.forget`."""
        self.seen.clear()

    def through(self, items: Sequence[Item]) -> None:
        """See `Layout.through`: all there in one exchange, and all back in one."""
        for some in _alike(items, lambda item: item.batch.stack.dtype):
            unseen = [item for item in some if not item.seen]
            # Copied: sources share their work space.
            local = [self.parts(item.batch, item.source().clone()) for item in unseen]
            brought = iter(self._bring([item.batch for item in unseen], local))
            done = list[Tensor | None]()
            for item in some:
                X = self._known(item.batch) if item.seen else next(brought)
                done.append(None if X is None else item.work(X).contiguous())
            buffers = [torch.empty_like(self.room(item.batch, 0)) for item in some]
            self._give([item.batch for item in some], done, buffers)
            for item, buffer in zip(some, buffers, strict=True):
                item.sink(buffer)

    def move(self, jobs: Sequence[Job]) -> None:
        """See `Layout.move`: all moments there in one exchange, and all back in one; a block travels once."""
        groups, whole = self._changed(jobs)
        for some in groups:
            back = [whole[moment.block][moment.number].get(moment.key) for moment in some]
            self.comm.from_owners(back, [moment.piece for moment in some], [moment.pieces for moment in some])

    def kept(self, blocks: Sequence[Block]) -> list[list[list[str]]]:
        """See `Layout.kept`: a small all-reduce for blocks that are new here."""
        self._agree({block: self.states(block) for block in blocks})
        return [[self._kept.get(param, []) for param in block.params] for block in blocks]

    def whole(self, jobs: Sequence[Job]) -> list[list[dict[str, Tensor]]]:
        """See `Layout.whole`: to the owners in one exchange, and from them to all ranks, on the CPU, in one."""
        groups, whole = self._changed(jobs)
        moments = [moment for some in groups for moment in some]
        owned = [[m for m in moments if m.block.owner == rank] for rank in range(self.comm.ranks)]
        tensors = [[whole[m.block][m.number].get(m.key, m.outline) for m in of_rank] for of_rank in owned]
        for of_rank, copies in zip(owned, spread(self.comm, tensors), strict=True):
            for m, copy in zip(of_rank, copies, strict=True):
                whole[m.block][m.number][m.key] = copy
        return [whole[job.block] for job in jobs]

    def cut(self, block: Block, number: int, whole: Tensor) -> Tensor:
        """See `Layout.cut`: flat."""
        return self.pieces(block)[number].of(whole, self.comm.rank)

    def _changed(self, jobs: Sequence[Job]) -> tuple[list[list["_Moment"]], dict[Block, list[dict[str, Tensor]]]]:
        """Moments of blocks by dtype; and whole at the owners, by block, after the changes."""
        states = {job.block: job.states for job in jobs}
        self._agree(states)
        moments = [moment for block, of_block in states.items() for moment in self._moments(block, of_block)]
        groups = list(_alike(moments, lambda moment: moment.piece.dtype))
        whole = {block: [dict[str, Tensor]() for _ in block.params] for block in states}
        for some in groups:
            arrived = self.comm.to_owners([moment.piece for moment in some], [moment.pieces for moment in some])
            for moment, tensor in zip(some, arrived, strict=True):
                if tensor is not None:
                    whole[moment.block][moment.number][moment.key] = tensor.view(moment.block.shapes[moment.number])
        for job in jobs:
            if job.block.owner == self.comm.rank:
                job.change(whole[job.block])
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
        flags = self.comm.anywhere([torch.is_tensor(s.get(key)) for s in params.values() for key in self.keys])
        for number, param in enumerate(params):
            found = flags[number * len(self.keys) : (number + 1) * len(self.keys)]
            if any(found):  # A base that has not stepped yet will have some later.
                self._kept[param] = [key for key, kept in zip(self.keys, found, strict=True) if kept]

    def _moments(self, block: Block, states: list[dict[str, Any]]) -> Iterator["_Moment"]:
        for number, (param, state, pieces) in enumerate(zip(block.params, states, self.pieces(block), strict=True)):
            for key in self._kept.get(param, []):
                nothing = torch.empty(0, dtype=self.access.weight(param).dtype, device=self.access.weight(param).device)
                piece = state.get(key)
                yield _Moment(block, number, key, nothing if piece is None else piece, pieces)

    def _known(self, batch: Batch) -> Tensor | None:
        return torch.stack([self.seen[block] for block in batch.blocks]) if batch.stack.here else None

    def _bring(self, batches: list[Batch], local: list[list[Tensor]]) -> list[Tensor | None]:
        """Whole matrices (k, M, N) of the batches that this rank owns, None of the others."""
        pieces = [p for batch in batches for block in batch.blocks for p in self.pieces(block)]
        wholes = iter(self.comm.to_owners([part for parts in local for part in parts], pieces))
        found = list[Tensor | None]()
        for batch, parts in zip(batches, local, strict=True):
            arrived = [next(wholes) for _ in parts]
            if not batch.stack.here:
                found.append(None)
                continue
            X = torch.empty(len(batch.blocks), *batch.stack.shape, dtype=batch.stack.dtype, device=batch.stack.device)
            shaped = views(X, batch.blocks[0].shapes)
            torch._foreach_copy_(
                shaped, [w.view(v.shape) for w, v in zip(arrived, shaped, strict=True) if w is not None]
            )
            found.append(X)
        return found

    def _give(self, batches: list[Batch], wholes: list[Tensor | None], buffers: list[Tensor]) -> None:
        """Write what owners have into the buffers of all ranks."""
        pieces = [p for batch in batches for block in batch.blocks for p in self.pieces(block)]
        into = [part for batch, buffer in zip(batches, buffers, strict=True) for part in self.parts(batch, buffer)]
        outgoing = list[Tensor | None]()
        for batch, X in zip(batches, wholes, strict=True):
            outgoing += [None] * len(batch.params) if X is None else views(X, batch.blocks[0].shapes)
        self.comm.from_owners(outgoing, into, pieces)


def lay_out(engine: "Engine") -> Layout:
    """Where the matrices of an engine are whole; a collective where its parameters are sharded.

    Args:
        engine: The engine.

    Returns:
        The layout.

    Raises:
        ConfigError: If checks are asked for that need whole weights.
    """
    keys = (*engine.base.first, *engine.base.second)
    if not engine.access.sharded and not engine.access.local:
        return Layout(engine.access, engine.optimizer, keys)
    if engine.checks.verify_every or engine.checks.compare_every:
        raise ConfigError(
            "verify_every and compare_every look at whole weights, and ranks hold pieces of these parameters: leave "
            "both at 0 under FSDP and DeepSpeed; check a short training under DDP instead."
        )
    if engine.access.local:
        return Layout(engine.access, engine.optimizer, keys)
    assert isinstance(engine.comm, Sharded)
    layout = Split(engine.access, engine.optimizer, engine.comm, keys)
    layout.learn(engine.params)
    return layout


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


def _alike(items: Sequence[T], key: Callable[[T], Hashable]) -> Iterator[list[T]]:
    """The items by a key, in order of first appearance, which is the same on every rank."""
    found: dict[Hashable, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    yield from found.values()
