"""DeepSpeed's step, which is ours to prepare: within it the optimizer is stepped group after group."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning_so.callbacks import strategies
from lightning_so.callbacks.standing import StandIn
from lightning_so.core.engine import Engine


def wrap(trainer: Any, engines: Sequence[Engine]) -> list[StandIn]:
    """Prepare the step before ZeRO's begins: when it calls the optimizer, others' groups are neither clipped nor there.

    ZeRO clips in its step. Here gradients are clipped before, by the same rule, so that a method sees them as
    everywhere. Stage 0 clips before it steps the optimizer, whose hooks do the rest.

    Args:
        trainer: The Trainer.
        engines: Its engines: one under DeepSpeed.

    Returns:
        What stands in the place of the step of DeepSpeed's engine.
    """
    deepspeed = strategies.deepspeed_engine(trainer)
    if deepspeed is None or not engines[0].host.access.sharded:
        return []
    (engine,) = engines

    def prepared(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if not strategies.steps_now(trainer):
                return original(*args, **kwargs)
            zero, bound = deepspeed.optimizer, deepspeed.optimizer.clip_grad
            if bound > 0:
                engine.parts.matrices.clip(engine.host.params, bound)
            zero.clip_grad = 0.0
            try:
                engine.step()
                return original(*args, **kwargs)
            finally:
                zero.clip_grad = bound

        return step

    return [StandIn(deepspeed, "step", prepared)]
