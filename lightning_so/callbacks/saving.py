"""A Trainer's checkpoints: what the strategy collects for them, and what we change in that.

Every rank saves, and takes part in the exchanges that bring sharded state together. Inside a signal's handler no rank
may begin one: the others may be at another line of ours.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor

from lightning_so.callbacks.signals import inside_handler
from lightning_so.callbacks.standing import StandIn
from lightning_so.callbacks.strategies import is_deepspeed
from lightning_so.core.checkpoint import plain_moments, stamp
from lightning_so.core.engine import Engine
from lightning_so.core.step import progress

#: What a strategy collects for a file.
Collect = Callable[..., dict[str, Any]]


def kind(engine: Engine, asked: str) -> str:
    """How much curvature to write: none inside a signal's handler where not every rank has all of it."""
    several = bool(engine.recorders) or engine.parts.matrices.sharded or engine.host.access.local
    return "rebuild" if engine.host.world.ranks > 1 and several and inside_handler() else asked


def write(engines: Mapping[int, Engine], checkpoint: dict[str, Any]) -> None:
    """Have the optimizers' states in a checkpoint hold plain moments, and stamp it.

    Args:
        engines: The engines, by the number of their optimizer.
        checkpoint: What the Trainer has collected on this rank; changed in place.
    """
    states = checkpoint.get("optimizer_states") or []
    for number, engine in engines.items() if states else ():
        states[number] = plain_moments.plain_optimizer_state(engine.parts, states[number], alone=inside_handler())
        # Folders of pieces are read group by group, by the keys that a new optimizer's groups have: no stamp there.
        checkpoint[stamp.STAMP] = stamp.MARK


def leaving(engine: Engine) -> plain_moments.Leaving | None:
    """See `plain_moments.leaving`; nothing inside a signal's handler where it takes an exchange."""
    alone = engine.parts.matrices.sharded and inside_handler()
    return None if alone else plain_moments.leaving(engine.parts)


def wrap(strategy: Any, engines: Sequence[Engine]) -> list[StandIn]:
    """Let a strategy collect weights that are not hidden, and not take a step of its own for one of the training.

    Args:
        strategy: The strategy.
        engines: The engines, one an optimizer.

    Returns:
        What stands in its functions' place.
    """

    def weights(original: Collect) -> Collect:
        def lightning_module_state_dict() -> dict[str, Any]:
            with ExitStack() as stack:
                hidden = [progress.shown(engine.hidden, engine.parts.matrices) for engine in engines]
                # A list: every engine's are shown.
                if not any([stack.enter_context(of_engine) for of_engine in hidden]):
                    return original()
                found = original().items()
                return {name: value.clone() if isinstance(value, Tensor) else value for name, value in found}

        return lightning_module_state_dict

    def state(original: Collect) -> Collect:
        def optimizer_state(optimizer: Any) -> dict[str, Any]:
            # Of an optimizer without state torch asks a step with gradients of zero, in which it would make some.
            for engine in engines:
                engine.aside = True
            try:
                return plain_moments.collected([engine.parts for engine in engines], partial(original, optimizer))
            finally:
                for engine in engines:
                    engine.aside = False

        return optimizer_state

    def save(original: Callable[..., None]) -> Callable[..., None]:
        def save_checkpoint(*args: Any, **kwargs: Any) -> None:
            with ExitStack() as stack:
                for engine in engines:
                    stack.enter_context(plain_moments.plainly(engine.parts, alone=inside_handler()))
                original(*args, **kwargs)

        return save_checkpoint

    found = [StandIn(strategy, "lightning_module_state_dict", weights), StandIn(strategy, "optimizer_state", state)]
    if is_deepspeed(strategy) and not strategy.full_checkpoint:
        # DeepSpeed writes the optimizer's state of its folders itself, from what is there.
        found.append(StandIn(strategy, "save_checkpoint", save))
    return found
