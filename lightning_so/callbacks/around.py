"""What stands around a strategy's own functions while a fit runs."""

from collections.abc import Callable
from typing import Any

from lightning_so.callbacks import saving, zero_step
from lightning_so.callbacks.one_step import undoing
from lightning_so.callbacks.standing import StandIn, ending
from lightning_so.core.engine import Engine


def wrap(
    trainer: Any,
    engines: list[Engine],
    prepare: Callable[[], None],
    catch_up: Callable[[], None],
    end: Callable[[], None],
) -> list[StandIn]:
    """Stand around the strategy's steps, saves and end.

    Args:
        trainer: The Trainer.
        engines: Its engines.
        prepare: Called before each step; see `one_step.undoing`.
        catch_up: Called when the optimizers have loaded their states; see `saving.wrap`.
        end: Called when the strategy ends.

    Returns:
        What stands there, to be released.
    """

    def step(original: Callable[..., Any]) -> Callable[..., Any]:
        return undoing(original, trainer, engines, prepare)

    ours = [StandIn(trainer.strategy, "optimizer_step", step), ending(trainer.strategy, end)]
    return [*ours, *zero_step.wrap(trainer, engines), *saving.wrap(trainer.strategy, engines, catch_up)]
