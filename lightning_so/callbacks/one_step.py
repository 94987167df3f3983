"""Around one step of an optimizer: gradients without a scale before it, nothing of ours left undone after it."""

from collections.abc import Callable
from typing import Any

from lightning_so.callbacks import strategies
from lightning_so.callbacks.following import before
from lightning_so.core.engine import Engine


def undoing(
    original: Callable[..., Any], trainer: Any, engines: list[Engine], prepare: Callable[[], None]
) -> Callable[..., Any]:
    """Undo a failed step at once, since nobody may see a hidden weight, and notice one that a scaler left out.

    Args:
        original: The strategy's own `optimizer_step`.
        trainer: The Trainer.
        engines: Its engines.
        prepare: Called before the step.

    Returns:
        The step in its place.
    """

    def optimizer_step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        prepare()
        engine = before(engines, optimizer)
        tried = engine and engine.report.tried
        try:
            found = original(optimizer, *args, **kwargs)
        finally:
            for each in engines:
                each.restore()
        if engine is not None and engine.report.tried == tried and strategies.left_out(trainer, engine):
            engine.skip()
        return found

    return optimizer_step


def unscale(trainer: Any, engine: Engine) -> None:
    """Have gradients unscaled where Lightning leaves the scale to a fused step: statistics are right then.

    Args:
        trainer: The Trainer.
        engine: The engine of the optimizer that is to step.
    """
    scaled = strategies.unscales_itself(trainer, engine.optimizer)
    if scaled and any(param.grad is not None for param in engine.host.params):
        strategies.scaler(trainer).unscale_(engine.optimizer)


def tell_scale(trainer: Any, pl_module: Any, engines: list[Engine]) -> None:
    """Tell engines that observe layers by what losses will be multiplied and divided.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        engines: Its engines.
    """
    scaler = strategies.scaler(trainer)
    divided = trainer.accumulate_grad_batches if pl_module.automatic_optimization else None
    for engine in engines:
        if engine.recorders:  # Reading the scale waits for the device.
            scale = scaler.get_scale() if scaler is not None else 1.0
            engine.loss_is(divided=divided, scale=scale, shown=pl_module.automatic_optimization)
