"""How an engine was asked to work."""

from dataclasses import dataclass, field
from enum import Enum

from lightning_so.contract.memory import Memory
from lightning_so.contract.method import Method
from lightning_so.contract.ways import Ways
from lightning_so.core.plan.mixture import Mixture
from lightning_so.core.plan.roles import Route
from lightning_so.errors import ConfigError, check_choice, check_count, check_range

#: Of bent updates: longer than the base's where that is measured to be better, or as the base's.
LENGTHS = ("measured", "base")


class Part(Enum):
    """What part an engine takes in the steps of its optimizer."""

    ACTS = "acts"
    #: It observes and solves, and the base steps alone; it acts once every block is warm.
    WATCHES = "watches"
    #: The base steps alone, and nothing is observed.
    RESTS = "rests"


@dataclass(frozen=True)
class Checks:
    """How often the engine checks itself.

    Attributes:
        verify_every: Steps between two comparisons of one block's update with a float64 reference; 0 for never.
        compare_every: Steps between two comparisons of the ranks' weights; 0 for never.
    """

    verify_every: int = 0
    compare_every: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_count("Checks", "verify_every", self.verify_every, 0, 1_000_000_000)
        check_count("Checks", "compare_every", self.compare_every, 0, 1_000_000_000)

    @property
    def whole_weights(self) -> bool:
        """Whether any of them looks at whole weights."""
        return bool(self.verify_every or self.compare_every)


@dataclass(frozen=True)
class Overhead:
    """What second order may cost: a share of the training's own step, which is measured.

    Attributes:
        share: The share, of the time that the same step takes without second order.
        strict: Whether a share that cannot be kept is refused, once that is known; otherwise the nearest is taken.

    Example:
        >>> Overhead(0.1).strict
        False
    """

    share: float
    strict: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        number = isinstance(self.share, (int, float)) and not isinstance(self.share, bool)
        if not (number and 0 < self.share < 1):
            raise ConfigError(
                f"max_overhead={self.share!r}: it is a share of the training's own step, above 0 and below 1 (0.1 is "
                f"10 %), or Overhead(0.1, strict=True). Leave it out for no bound."
            )

    @classmethod
    def of(cls, asked: "float | Overhead | None") -> "Overhead | None":
        """A share as it may be given."""
        return asked if asked is None or isinstance(asked, Overhead) else cls(asked)


@dataclass(frozen=True)
class Options:
    """What the user has asked for; whoever takes it from the user checks it.

    Attributes:
        mixture: The rules that choose a method for every parameter; None for the method that is recommended.
        route: See `plan.route.route`.
        min_coverage: Smallest share of elements that must be covered.
        checks: Optional checks of the running engine.
        reduction: Whether the loss is a "mean" or a "sum" over samples; None where its graph tells.
        lag: Steps between a solve and its use, 0 or 1.
        ways: How what can be computed in several ways is; what it leaves open is measured.
        lengths: Of bent updates, one of `LENGTHS`; see `actions.stretch`.
        overhead: The share of time that may be taken; None where the schedule is a function of the step alone.
        memory: How curvature is to hold less; None for all of it in full.
        balance: Whether ranks have units by their measured speed.
    """

    mixture: Mixture | None = None
    route: Route | None = None
    min_coverage: float = 0.0
    checks: Checks = field(default_factory=Checks)
    reduction: str | None = None
    lag: int = 0
    ways: Ways = field(default_factory=Ways)
    overhead: Overhead | None = None
    lengths: str = "measured"
    memory: Memory | None = None
    balance: bool = False

    @classmethod
    def asked(
        cls,
        owner: str,
        method: Method | Mixture | None,
        *,
        route: Route | None,
        min_coverage: float,
        verify_every: int,
        compare_every: int,
        reduction: str | None,
        lag: int,
        max_overhead: float | Overhead | None,
        ways: Ways | None,
        lengths: str,
        memory: Memory | float | None,
        balance: bool,
    ) -> "Options":
        """Options as the arguments of a user, see `SecondOrder`.

        Args:
            owner: Whose arguments they are, for messages.
            method: A method or rules; None for what is recommended.
            route: See `Options`.
            min_coverage: See `Options`.
            verify_every: See `Checks`.
            compare_every: See `Checks`.
            reduction: See `Options`.
            lag: See `Options`.
            max_overhead: A share of the training's own step.
            ways: See `Options`.
            lengths: See `Options`.
            memory: See `Memory.of`.
            balance: See `Options`.

        Returns:
            The options.

        Raises:
            ConfigError: If one is out of range.
        """
        check_range(owner, "min_coverage", min_coverage, 0.0, 1.0)
        check_choice(owner, "reduction", reduction, (None, "mean", "sum"))
        check_choice(owner, "lag", lag, (0, 1))
        check_choice(owner, "lengths", lengths, LENGTHS)
        check_choice(owner, "balance", balance, (False, True))
        if balance and max_overhead is not None:
            raise ConfigError(
                f"{owner}(balance=True, max_overhead={max_overhead!r}): a share of time is bought by the seconds of "
                f"rank 0, for ranks that are equal. Leave one of both out; the method's period= has solves cost less."
            )
        return cls(
            None if method is None else Mixture.of(method),
            route,
            min_coverage,
            Checks(verify_every, compare_every),
            reduction,
            lag,
            ways or Ways(),
            Overhead.of(max_overhead),
            lengths,
            Memory.of(memory),
            balance,
        )
