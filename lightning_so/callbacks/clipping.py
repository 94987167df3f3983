"""Where gradients are preconditioned, the raw ones are clipped, and Lightning's later call does nothing."""

from collections.abc import Callable
from typing import Any


class RawClip:
    """Clips once a step, before the method acts."""

    def __init__(self) -> None:
        """Nothing clipped yet."""
        self._module: Any = None

    def before(self, trainer: Any, pl_module: Any, optimizer: Any) -> Callable[[], None] | None:
        """A function that clips now and keeps Lightning from clipping again in this step; None without clipping."""
        if trainer.gradient_clip_val is None:
            return None

        def clip() -> None:
            pl_module.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
            pl_module.__dict__["configure_gradient_clipping"] = _nothing
            self._module = pl_module

        return clip

    def release(self) -> None:
        """After the step: Lightning's own call clips again."""
        if self._module is not None:
            self._module.__dict__.pop("configure_gradient_clipping", None)
            self._module = None


def _nothing(*_: Any, **__: Any) -> None:
    """No clipping."""
