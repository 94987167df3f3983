"""Where gradients are preconditioned, the raw ones are clipped, and what clips later does nothing."""

from collections.abc import Callable
from typing import Any

from lightning_so.callbacks import strategies
from lightning_so.core.engine import Engine


class RawClip:
    """Clips once a step, before the method acts."""

    def __init__(self) -> None:
        """Nothing clipped yet."""
        self._module: Any = None
        self._zero: Any = None

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
        if strategies.is_deepspeed(trainer):
            return self._before_zero(trainer.strategy.deepspeed_engine, engine)
        if trainer.gradient_clip_val is None:
            return None

        def clip() -> None:
            pl_module.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
            pl_module.__dict__["configure_gradient_clipping"] = _nothing
            self._module = pl_module

        return clip

    def _before_zero(self, deepspeed: Any, engine: Engine) -> Callable[[], None] | None:
        """The same for DeepSpeed, which clips inside its own step and not in the Trainer's hook."""
        zero, bound = deepspeed.optimizer, float(deepspeed.gradient_clipping() or 0.0)
        if bound <= 0:
            return None

        def clip() -> None:
            engine.layout.clip(engine.params, bound)
            if hasattr(zero, "clip_grad"):
                zero.clip_grad, self._zero = 0.0, (zero, bound)
            else:  # Stage 0: the engine itself clips.
                deepspeed._config.gradient_clipping, self._zero = 0.0, (deepspeed, bound)

        return clip

    def release(self) -> None:
        """After the step: the others clip again."""
        if self._zero is not None:
            (owner, bound), self._zero = self._zero, None
            if hasattr(owner, "clip_grad"):
                owner.clip_grad = bound
            else:
                owner._config.gradient_clipping = bound
        if self._module is not None:
            self._module.__dict__.pop("configure_gradient_clipping", None)
            self._module = None


def _nothing(*_: Any, **__: Any) -> None:
    """No clipping."""
