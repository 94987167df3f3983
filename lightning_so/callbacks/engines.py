"""Which optimizers of a training get an engine; the others are left alone, by name."""

from collections.abc import Callable, Sequence

from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn
from torch.optim import Optimizer

from lightning_so.core.engine import Engine
from lightning_so.core.overhead.meter import Meter
from lightning_so.errors import ConfigError, UnusableError


def make(
    optimizers: Sequence[Optimizer], engine: Callable[[Optimizer], Engine], *, least: float, printed: bool
) -> list[Engine]:
    """Make an engine for each optimizer that a method can work before, and tell where every parameter went.

    Args:
        optimizers: All optimizers of the training.
        engine: Makes the engine of one: a collective.
        least: Smallest share of an optimizer's elements that must be covered.
        printed: Whether plans are printed; of an optimizer that is left alone there is a warning else.

    Returns:
        The engines.

    Raises:
        ConfigError: If no method can work before any of them, or optimizer, method and model do not fit together.
    """
    found, several = list[Engine | UnusableError](), len(optimizers) > 1
    for index, optimizer in enumerate(optimizers):
        try:
            found.append(engine(optimizer))
        except UnusableError as error:
            if several and least > 0:
                below = f"coverage 0 of optimizer {index} is below min_coverage={least}"
                raise ConfigError(f"{below}: lower it or change the optimizer. {error}") from error
            found.append(error)
    engines = [each for each in found if isinstance(each, Engine)]
    reasons = [each for each in found if isinstance(each, UnusableError)]
    if not engines:
        if not several:
            raise reasons[0]
        lines = [f"Optimizer {index} of configure_optimizers: {reason}" for index, reason in enumerate(reasons)]
        raise ConfigError("\n".join([f"SecondOrder can work before none of the {len(lines)} optimizers.", *lines]))
    tell: Callable[[object], None] = rank_zero_only(print) if printed else lambda _: None
    for index, (each, optimizer) in enumerate(zip(found, optimizers, strict=True)):
        title = f"Optimizer {index} of configure_optimizers:"
        if isinstance(each, Engine):
            if several:
                tell(title)
            tell(each.plan)
        else:
            (tell if printed else rank_zero_warn)(f"{title} {type(optimizer).__name__} is left alone: {each}")
    return engines


def together(engines: Sequence[Engine]) -> None:
    """Have engines of one training know of each other's time: no one's is the training's own, and they share a budget.

    Args:
        engines: The engines, hooked in or not.
    """
    meters = [engine.stopwatch for engine in engines if isinstance(engine.stopwatch, Meter)]
    for meter in meters:
        meter.peers = meters
