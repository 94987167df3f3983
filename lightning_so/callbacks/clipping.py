"""Where gradients are preconditioned, the raw ones are clipped, and what clips later does nothing."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning_so.callbacks import strategies
from lightning_so.core.engine import Engine


class RawClip:
    """Clips once a step, before the method acts."""

    def __init__(self) -> None:
        """Nothing clipped yet."""
        self._undo: Callable[[], object] | None = None

    def before(self, trainer: Any, pl_module: Any, optimizer: Any, engine: Engine) -> Callable[[], None] | None:
        """A function that clips now and keeps others from clipping again in this step; None without clipping.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            optimizer: The optimizer that is about to step.
            engine: The engine in front of it.

        Returns:
            The function.
        """
        if strategies.is_deepspeed(trainer.strategy):
            return self._before_zero(trainer.strategy.deepspeed_engine, engine)
        if trainer.gradient_clip_val is None:
            return None

        def clip() -> None:
            pl_module.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
            pl_module.__dict__["configure_gradient_clipping"] = _nothing
            self._undo = partial(pl_module.__dict__.pop, "configure_gradient_clipping", None)

        return clip

    def _before_zero(self, deepspeed: Any, engine: Engine) -> Callable[[], None] | None:
        """The same for DeepSpeed, which clips inside its own step and not in the Trainer's hook."""
        bound = float(deepspeed.gradient_clipping() or 0.0)
        if bound <= 0:
            return None
        # At stage 0 the engine itself clips, by its configuration.
        sharded = hasattr(deepspeed.optimizer, "clip_grad")
        owner, name = (deepspeed.optimizer, "clip_grad") if sharded else (deepspeed._config, "gradient_clipping")

        def clip() -> None:
            engine.parts.matrices.clip(engine.host.params, bound)
            setattr(owner, name, 0.0)
            self._undo = partial(setattr, owner, name, bound)

        return clip

    def release(self) -> None:
        """After the step: the others clip again."""
        if self._undo is not None:
            self._undo()
            self._undo = None


def _nothing(*_: Any, **__: Any) -> None:
    """No clipping."""
