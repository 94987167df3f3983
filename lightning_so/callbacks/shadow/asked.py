"""What may be asked of shadow mode."""

from dataclasses import dataclass

from lightning_so.errors import ConfigError, check_count


@dataclass(frozen=True)
class Shadow:
    """How a method is tried beside a training, `SecondOrder(..., shadow=True)` by default.

    Attributes:
        share: Share of the training's steps that the copy takes as well, above 0 and at most 1; one of its steps costs
            about as much as one of the training with the method.
        promote_at: Step of the optimizer at which the method is promoted: it then watches the training's own gradients
            until it is warm, and takes over. None for never.

    Example:
        >>> Shadow(promote_at=500).every
        4
    """

    share: float = 0.25
    promote_at: int | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        if not (number and 0 < self.share <= 1):
            raise ConfigError(
                f"Shadow(share={self.share!r}): the share of the training's steps that the copy takes is above 0 and "
                f"at most 1; 0.25 is the default, and less foretells worse."
            )
        if self.promote_at is not None:
            check_count("Shadow", "promote_at", self.promote_at, 1, 1_000_000_000)

    @classmethod
    def of(cls, asked: "bool | Shadow") -> "Shadow | None":
        """What was asked for, as it may be given."""
        if isinstance(asked, Shadow):
            return asked
        if not isinstance(asked, bool):
            raise ConfigError(f"SecondOrder(shadow={asked!r}): give True, False, or Shadow(share=..., promote_at=...).")
        return cls() if asked else None

    @property
    def every(self) -> int:
        """The copy takes every so many steps."""
        return max(1, round(1 / self.share))
