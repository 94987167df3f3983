"""Ranks that are not there: a world of a given size, for plans of a training that has not begun.

What would arrive from others has its shape and no numbers, so that it is of use for tensors without numbers alone.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_so.comm.access.whole import Access
from lightning_so.comm.local import Local
from lightning_so.comm.pieces import even
from lightning_so.comm.sharded import Sharded

#: By rank, the first number of a parameter that it holds, and the one after the last.
Spans = tuple[tuple[int, int], ...]


class Supposed(Sharded):
    """One rank of several, alone: it has the interface of all forms of exchange, and nothing is sent."""

    def __init__(self, rank: int, ranks: int, spans: Sequence[Spans] = ()) -> None:
        """Suppose a world.

        Args:
            rank: This rank.
            ranks: How many there are.
            spans: By parameter of the optimizer, which piece each rank has; nothing where all are whole.
        """
        Local.__init__(self)
        self.rank, self.ranks, self._spans = rank, ranks, list(spans)

    def anywhere(self, flags: list[bool]) -> list[bool]:
        """See `Local.anywhere`: as here."""
        return flags

    def start_gather(self, mine: Tensor, sizes: list[int]) -> Callable[[], list[Tensor]]:
        """See `Local.start_gather`."""
        return lambda: [mine.new_empty(size) for size in sizes]

    def start_largest(self, number: int) -> Callable[[], int]:
        """See `Local.start_largest`."""
        return lambda: number

    def start_reduce(self, total: Tensor, owner: int) -> Callable[[], None]:
        """See `Local.start_reduce`."""
        return lambda: None

    def sum(self, total: Tensor) -> None:
        """See `Local.sum`."""

    def close(self) -> None:
        """See `Local.close`."""

    def spans(self, mine: Sequence[tuple[int, int]]) -> list[Spans]:
        """See `Sharded.spans`: as it was supposed."""
        return self._spans

    def _exchange_all(self, outgoing: list[list[Tensor]], counts: list[int], like: Sequence[Tensor]) -> Tensor:
        if not like:
            return torch.empty(0)
        # What goes out lies side by side, as on a real wire.
        wire = torch.cat([like[0].new_empty(0), *(part for parts in outgoing for part in parts)])
        arrived = torch.empty(sum(counts), dtype=wire.dtype, device=wire.device)
        return arrived


class SupposedAccess(Access):
    """Pieces of whole parameters, as a rank of several would have them."""

    sharded = True

    def __init__(self, spans: dict[Tensor, Spans], rank: int, remark: str = "") -> None:
        """Suppose how parameters are cut.

        Args:
            spans: By parameter, which piece each rank has.
            rank: This rank.
            remark: What the plan says of it.
        """
        self.spans, self.rank, self.remark = spans, rank, remark

    def span(self, param: Tensor) -> tuple[int, int]:
        """See `Access.span`."""
        return self.spans[param][self.rank]

    def piece(self, param: Tensor, whole: Tensor) -> Tensor:
        """This rank's piece of a tensor like a parameter, flat; a view."""
        first, last = self.span(param)
        return whole.detach().reshape(-1)[first:last]

    def weight(self, param: Tensor) -> Tensor:
        """See `Access.weight`."""
        return self.piece(param, param)

    def grad(self, param: Tensor) -> Tensor | None:
        """See `Access.grad`."""
        return None if param.grad is None else self.piece(param, param.grad)

    def state(self, optimizer: Optimizer, param: Tensor) -> dict[str, Tensor]:
        """See `Access.state`; what is not like the parameter is whole on every rank."""
        return {
            key: self.piece(param, value) if torch.is_tensor(value) and value.shape == param.shape else value
            for key, value in optimizer.state.get(param, {}).items()
        }


def by_rows(params: Sequence[Tensor], ranks: int) -> dict[Tensor, Spans]:
    """Parameters cut along their first dimension, as `fully_shard` cuts them.

    Args:
        params: The parameters.
        ranks: How many ranks.

    Returns:
        By parameter, which piece each rank has.
    """
    return {
        p: even(p.shape[0] if p.ndim else 1, p.numel() // max(1, p.shape[0] if p.ndim else 1), ranks, 0).spans
        for p in params
    }


def by_numbers(params: Sequence[Tensor], ranks: int) -> dict[Tensor, Spans]:
    """Each parameter cut into equal runs of its numbers, as stage 3 of ZeRO cuts them."""
    return {p: even(p.numel(), 1, ranks, 0).spans for p in params}


def in_a_row(params: Sequence[Tensor], ranks: int) -> dict[Tensor, Spans]:
    """All parameters one after the other, cut into equal runs, as stages 1 and 2 of ZeRO cut a param group.

    Args:
        params: Those of one group, in its order.
        ranks: How many ranks.

    Returns:
        By parameter, which piece each rank has: of many, none.
    """
    pieces = even(sum(p.numel() for p in params), 1, ranks, 0).spans
    found, begin = dict[Tensor, Spans](), 0
    for p in params:
        end = begin + p.numel()
        found[p] = tuple((min(max(a, begin), end) - begin, min(max(b, begin), end) - begin) for a, b in pieces)
        begin = end
    return found
