"""Which range of a tensor's numbers each rank holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from torch import Tensor

from lightning_so.errors import ConfigError


@dataclass(frozen=True)
class Pieces:
    """Where the numbers of one tensor are.

    Attributes:
        spans: By rank, the first number that it holds and the one after the last; none where they are equal.
        owner: The rank that gets them all.
    """

    spans: tuple[tuple[int, int], ...]
    owner: int

    def __post_init__(self) -> None:
        """Check the spans.

        Raises:
            ConfigError: If the pieces overlap, or do not make a whole.
        """
        _ = self.sources

    @cached_property
    def sources(self) -> dict[int, int]:
        """The ranks whose pieces make the whole, in its order, and their numbers: of equal pieces, the first rank's."""
        return _sources(self.spans)

    @cached_property
    def holders(self) -> list[int]:
        """The ranks that hold a number."""
        return _holders(self.spans)

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
        return self.sources.get(rank, 0)

    def of(self, whole: Tensor, rank: int) -> Tensor:
        """A rank's piece of a whole tensor, flat."""
        first, last = self.spans[rank]
        return whole.reshape(-1)[first:last]

    def cut(self, whole: Tensor) -> dict[int, Tensor]:
        """By rank that holds some, its piece of a whole tensor, flat: one call for all of them."""
        found = whole.reshape(-1).split([*self.sources.values()])
        by_span = {self.spans[rank]: piece for rank, piece in zip(self.sources, found, strict=True)}
        return {rank: by_span[self.spans[rank]] for rank in self.holders}


# Few parameters differ in how they are cut, and of many ranks a description is long.
@lru_cache(maxsize=4096)
def _sources(spans: tuple[tuple[int, int], ...]) -> dict[int, int]:
    reached, found = 0, dict[int, int]()
    for first, last, rank in sorted((*span, rank) for rank, span in enumerate(spans)):
        if first == reached and last > first:
            reached = last
            found[rank] = last - first
    whole = {spans[rank] for rank in found}
    if reached != max(last for _, last in spans) or any(b > a and (a, b) not in whole for a, b in spans):
        raise ConfigError(
            f"ranks hold the numbers {spans} of a parameter: these pieces overlap or leave gaps. Shard every "
            f"parameter in equal order over ranks (FSDP2's Shard(0), FSDP1, ZeRO)."
        )
    return found


@lru_cache(maxsize=4096)
def _holders(spans: tuple[tuple[int, int], ...]) -> list[int]:
    return [rank for rank, (first, last) in enumerate(spans) if last > first]


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
    return Pieces(_even(rows, columns, ranks), owner)


@lru_cache(maxsize=4096)
def _even(rows: int, columns: int, ranks: int) -> tuple[tuple[int, int], ...]:
    chunk = -(-rows // ranks)
    return tuple(pairwise(columns * min(rows, chunk * rank) for rank in range(ranks + 1)))


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
