"""What an optimizer's own step asks an engine before it and after it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_so.core.engine import Engine
from lightning_so.core.options import Part
from lightning_so.errors import ConfigError


def hooks(engine: Engine) -> list[Any]:
    """Hook the optimizer's own step: it asks the engine before it, unless somebody has already, and after it.

    Args:
        engine: The engine.

    Returns:
        Handles that take the hooks back: of that before the step, and of that after it.
    """

    def before(_: Optimizer, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if engine.aside or engine.part is Part.RESTS:
            return None
        # torch passes the optimizer itself as args[0].
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            prepare()
            return None

        # With a closure the gradients exist only after it has run, inside the optimizer's step.
        @torch.compiler.disable
        def wrapped() -> Any:
            loss = closure()
            prepare()
            return loss

        return args[:1], {**kwargs, "closure": wrapped}

    def prepare() -> None:
        if engine.prepared:
            return
        if getattr(engine.optimizer, "grad_scale", None) is not None:
            raise ConfigError(
                "the gradients are still multiplied by the GradScaler's scale, which a fused optimizer removes only in "
                "its step: call scaler.unscale_(optimizer) before scaler.step(optimizer)."
            )
        engine.step()

    def after(*_: Any) -> None:
        if not engine.aside and engine.part is not Part.RESTS:
            engine.after_step()

    # A compiled step traces what it calls; there is nothing to gain from tracing us.
    untraced: Any = torch.compiler.disable
    return [
        engine.optimizer.register_step_pre_hook(untraced(before)),
        engine.optimizer.register_step_post_hook(untraced(after)),
    ]


def innermost(handles: Sequence[Any]) -> None:
    """Have our hooks of a step be the next to it, so that all others see weights that are not hidden.

    Args:
        handles: What `hooks` gave; a hook that somebody has taken away stays away.
    """
    for handle, last in zip(handles, (True, False), strict=True):
        if handle.id in (others := handle.hooks_dict_ref()):
            others.move_to_end(handle.id, last)


def guarded(engine: Engine, handles: Sequence[Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """The optimizer's step, after which nothing is left hidden, whatever happened in it.

    Args:
        engine: The engine.
        handles: Those of its hooks.
        original: The step.

    Returns:
        The new step, a method of the optimizer.
    """

    def step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
        innermost(handles)
        try:
            return original(*args, **kwargs)
        finally:
            engine.restore()

    return step
