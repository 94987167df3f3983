"""Which range of a tensor's numbers each rank holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from lightning_so.errors import ConfigError


@dataclass(frozen=True)
class Pieces:
    """Where the numbers of one tensor are.

    Attributes:
        spans: By rank, the first number that it holds and the one after the last; none where they are equal.
        owner: The rank that gets them all.
        sources: The ranks whose pieces make the whole, in its order: of ranks that hold the same, the first.
    """

    spans: tuple[tuple[int, int], ...]
    owner: int
    sources: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Find the sources.

        Raises:
            ConfigError: If the pieces overlap, or do not make a whole.
        """
        reached, sources = 0, []
        for first, last, rank in sorted((*span, rank) for rank, span in enumerate(self.spans)):
            if first == reached and last > first:
                reached = last
                sources.append(rank)
        if reached != self.numel or any(self._torn(span, sources) for span in self.spans):
            raise ConfigError(
                f"ranks hold the numbers {self.spans} of a parameter: these pieces overlap or leave gaps. Shard every "
                f"parameter in equal order over ranks (FSDP2's Shard(0), FSDP1, ZeRO)."
            )
        object.__setattr__(self, "sources", tuple(sources))

    def _torn(self, span: tuple[int, int], sources: list[int]) -> bool:
        """Whether a piece is neither empty nor one of the sources'."""
        return span[1] > span[0] and all(span != self.spans[rank] for rank in sources)

    @property
    def numel(self) -> int:
        """Numbers of the whole tensor."""
        return max(last for _, last in self.spans)

    def size(self, rank: int) -> int:
        """Numbers of a rank's piece."""
        first, last = self.spans[rank]
        return last - first

    def gives(self, rank: int) -> int:
        """Numbers that a rank sends to make the whole."""
        return self.size(rank) if rank in self.sources else 0

    def of(self, whole: Tensor, rank: int) -> Tensor:
        """A rank's piece of a whole tensor, flat."""
        first, last = self.spans[rank]
        return whole.reshape(-1)[first:last]


def even(rows: int, columns: int, ranks: int, owner: int) -> Pieces:
    """A tensor cut along its first dimension as `torch.chunk` cuts it (DTensor's Shard(0)).

    Args:
        rows: Length of the first dimension.
        columns: Numbers of each row.
        ranks: World size.
        owner: The rank that gets them all.

    Returns:
        The pieces; the last ones are smaller or empty.
    """
    chunk = -(-rows // ranks)
    edges = [columns * min(rows, chunk * rank) for rank in range(ranks + 1)]
    return Pieces(tuple(pairwise(edges)), owner)


def within(spans: Sequence[tuple[int, int]], begin: int, end: int) -> tuple[tuple[int, int], ...]:
    """Which range of a part of a tensor each rank holds.

    Args:
        spans: By rank, which range of the tensor it holds.
        begin: First number of the part.
        end: The one after its last.

    Returns:
        By rank, the same of the part, whose first number is 0.
    """
    return tuple((min(max(first, begin), end) - begin, min(max(last, begin), end) - begin) for first, last in spans)
