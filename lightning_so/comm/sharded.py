"""Ranks that hold pieces of parameters: whole tensors at an owner, and back as pieces.

A piece is a range of a tensor's row-major numbers, so that one description fits rows of a DTensor, FSDP1's flat
parameters and ZeRO's partitions; uneven or empty as they come, and the same on several ranks where they are replicas.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_so.comm.pieces import Pieces
from lightning_so.comm.replicated import Replicated


class Sharded(Replicated):
    """Exchanges between ranks that hold pieces, besides those of `Replicated`.

    The same tensors in the same order on every rank; `sent` counts what goes to others.
    """

    def spans(self, mine: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], ...]]:
        """Tell all ranks which piece of every tensor each has: one all-gather.

        Args:
            mine: By tensor, the first number that this rank holds and the one after the last.

        Returns:
            By tensor, those of every rank.
        """
        own = torch.tensor(mine, dtype=torch.int64).reshape(-1, 2)
        wires = self.gather(own.flatten().view(torch.uint8), [own.nbytes] * self.ranks)
        found = torch.stack([wire.clone().view(torch.int64).view(-1, 2) for wire in wires]).tolist()
        return [tuple((first, last) for first, last in of) for of in zip(*found, strict=True)]

    def to_owners(self, tensors: Sequence[Tensor], pieces: Sequence[Pieces]) -> list[Tensor | None]:
        """Bring tensors together at their owners: one all-to-all.

        Args:
            tensors: This rank's pieces, of one dtype and device.
            pieces: Where the numbers of each tensor are.

        Returns:
            The whole flat tensors that this rank owns; None for the others.
        """
        outgoing: list[list[Tensor]] = [[] for _ in range(self.ranks)]
        for tensor, p in zip(tensors, pieces, strict=True):
            if p.gives(self.rank):
                outgoing[p.owner].append(tensor.reshape(-1))
        mine = [p for p in pieces if p.owner == self.rank]
        counts = [sum(p.gives(rank) for p in mine) for rank in range(self.ranks)]
        arrived = self._exchange_all(outgoing, counts, tensors)
        # Of many ranks most give nothing of a tensor, and what they do not give is not cut.
        given = [(n, rank) for rank in range(self.ranks) for n, p in enumerate(mine) if p.gives(rank)]
        sizes = [mine[n].gives(rank) for n, rank in given]
        found = dict(zip(given, arrived.split(sizes), strict=True)) if sizes else {}
        whole = iter([torch.cat([arrived[:0], *(found[n, rank] for rank in p.sources)]) for n, p in enumerate(mine)])
        return [next(whole) if p.owner == self.rank else None for p in pieces]

    def from_owners(self, tensors: Sequence[Tensor | None], into: Sequence[Tensor], pieces: Sequence[Pieces]) -> None:
        """Take tensors apart at their owners, and write every rank's pieces: one all-to-all.

        Args:
            tensors: The whole tensors that this rank owns, in any shape; what is given for others is not looked at.
            into: This rank's pieces, of one dtype and device, written in place.
            pieces: Where the numbers of each tensor are.
        """
        outgoing: list[list[Tensor]] = [[] for _ in range(self.ranks)]
        for tensor, p in zip(tensors, pieces, strict=True):
            if p.owner == self.rank and tensor is not None:
                for rank, piece in p.cut(tensor).items():
                    outgoing[rank].append(piece)
        counts = [0] * self.ranks
        for p in pieces:
            counts[p.owner] += p.size(self.rank)
        arrived = self._exchange_all(outgoing, counts, into)
        by_owner = sorted(zip(into, pieces, strict=True), key=lambda item: item[1].owner)
        targets = [target for target, p in by_owner if p.size(self.rank)]
        if targets:
            parts = arrived.split([p.size(self.rank) for _, p in by_owner if p.size(self.rank)])
            torch._foreach_copy_(targets, [part.view(t.shape) for part, t in zip(parts, targets, strict=True)])

    def _exchange_all(self, outgoing: list[list[Tensor]], counts: list[int], like: Sequence[Tensor]) -> Tensor:
        """One all-to-all: what goes to each rank, and how much comes from each; what has come, rank after rank."""
        if not like:
            return torch.empty(0)
        sizes = [sum(part.numel() for part in parts) for parts in outgoing]
        with self._exchange():
            nothing = torch.empty(0, dtype=like[0].dtype, device=self._device)
            wire = torch.cat([nothing, *(part.to(self._device) for parts in outgoing for part in parts)])
            arrived = torch.empty(sum(counts), dtype=wire.dtype, device=self._device)
            dist.all_to_all_single(arrived, wire, counts, sizes, group=self._group)
            self.sent += (sum(sizes) - sizes[self.rank]) * wire.itemsize
            return arrived.to(like[0].device)
