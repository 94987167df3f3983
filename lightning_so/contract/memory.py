"""What curvature may hold, and the modes in which it holds less."""

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lightning_so.errors import ConfigError, check_choice, check_range

#: Which sides of a matrix have a factor and a basis.
SIDES = ("both", "short")
#: Bytes a byte of the parameters, of which nobody has so many.
MOST = 1000


@dataclass(frozen=True)
class Memory:
    """Have curvature hold less, at whatever values.

    Of a factor, of an inverse and of a root, which are symmetric, a triangle is kept. Saved weights and work space have
    room inside a step alone, and activations have it for the rest of the time. Both are exact.

    Attributes:
        half: Whether eigenbases are kept in float16, whose entries are at most 1: each is off by 2^-12 of itself.
        sides: "both", or "short": the longer side of a matrix keeps the diagonal of its factor and no basis; of a
            square one the rows do (SOAP).
        most: Bytes that are held between steps, a byte of the parameters, the optimizer's own moments included; `half`
            is taken where that needs it, and under DDP then the largest share in quarters. None for no bound.
        share: Under DDP, the share of the curvature that every rank has; the rest is with its owner alone, who turns
            gradients and updates for all. One process has all of it.

    Raises:
        ConfigError: If one is out of range.

    Example:
        >>> Memory(half=True).short
        False
    """

    half: bool = False
    sides: str = "both"
    most: float | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_choice("Memory", "half", self.half, (False, True))
        check_choice("Memory", "sides", self.sides, SIDES)
        if self.most is not None:
            check_range("Memory", "most", self.most, 0.0, MOST, closed=False)
        check_range("Memory", "share", self.share, 0.0, 1.0)

    @classmethod
    def of(cls, asked: "Memory | float | None") -> "Memory | None":
        """What is asked for as it may be given: a number is the bytes that may be held, see `most`.

        Args:
            asked: What is given.

        Returns:
            How curvature is to hold less; None for all of it in full.

        Raises:
            ConfigError: If it is something else.
        """
        if asked is None or isinstance(asked, Memory):
            return asked
        if isinstance(asked, bool) or not isinstance(asked, int | float) or not 0 <= asked < MOST:
            raise ConfigError(
                f"memory={asked!r}: it is a Memory(half=True, ...), or a number in [0, {MOST}) of bytes a byte of the "
                f"parameters, the optimizer's moments included, as memory=4.5. Leave it out to have curvature in full."
            )
        return cls(most=float(asked))

    @property
    def short(self) -> bool:
        """Whether the longer side has no basis."""
        return self.sides == "short"


@runtime_checkable
class TakesMemory(Protocol):
    """A method that can hold less than triangles and room inside a step alone let it."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the attributes of `Memory` that it knows."""
        ...


@runtime_checkable
class KeepsTriangles(Protocol):
    """A method that may keep triangles of its factors."""

    def whole(self, stats: Any, row: int) -> list[Tensor]:
        """The factors of a block that are matrices, whole, (..., T, T)."""
        ...


def held(stats: Any) -> Iterator[Tensor]:
    """All tensors in what a method keeps of a stack, at this moment."""
    if isinstance(stats, Tensor):
        yield stats
    elif isinstance(stats, list | tuple | dict):
        for part in stats.values() if isinstance(stats, dict) else stats:
            yield from held(part)
    elif is_dataclass(stats):
        yield from held(vars(stats))
