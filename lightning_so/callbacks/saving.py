"""A Trainer's checkpoints: what the strategy collects for them, and what we change in that.

Every rank saves, and takes part in the exchanges that bring sharded state together. Inside a signal's handler no rank
may begin one: the others may be at another line of ours.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer

from lightning_so.callbacks.signals import inside_handler
from lightning_so.callbacks.standing import StandIn
from lightning_so.callbacks.strategies import is_deepspeed
from lightning_so.core.checkpoint import checkpoint, plain_moments, stamp
from lightning_so.core.engine import Engine
from lightning_so.core.options import Part
from lightning_so.core.solves import basis
from lightning_so.core.step import progress

#: How a run goes on from each kind of state.
RESUMED = {
    "full": "exactly as if it had not stopped",
    "compact": "with bases found again from the factors",
    "rebuild": "with cold blocks",
}
#: What a strategy collects for a file.
Collect = Callable[..., dict[str, Any]]


def kind(engine: Engine, asked: str) -> str:
    """How much curvature to write: none inside a signal's handler where not every rank has all of it."""
    several = bool(engine.recorders) or engine.parts.matrices.owned or engine.host.access.local
    return "rebuild" if engine.host.world.ranks > 1 and several and inside_handler() else asked


def state(engine: Engine, asked: str) -> dict[str, Any]:
    """What a checkpoint has of an engine: its curvature, and what part it takes in steps where it does not act.

    Args:
        engine: The engine.
        asked: What checkpoints carry.

    Returns:
        The state.
    """
    part = {} if engine.part is Part.ACTS else {"part": engine.part.value}
    return {**checkpoint.write(engine.parts, kind(engine, asked)), **part}


def write(engines: Sequence[Engine], file: dict[str, Any], optimizers: Sequence[Optimizer]) -> None:
    """Have the optimizers' states in a checkpoint hold plain moments, and stamp it.

    Args:
        engines: The engines; optimizers that are left alone have none.
        file: What the Trainer has collected on this rank; changed in place.
        optimizers: Those that the Trainer has now.
    """
    states = file.get("optimizer_states") or []
    for number, optimizer in enumerate(optimizers[: len(states)]):
        engine = next((engine for engine in engines if engine.optimizer is optimizer), None)
        if engine is None:
            continue  # Left alone, or replaced and not followed yet.
        states[number] = plain_moments.plain_optimizer_state(engine.parts, states[number], alone=inside_handler())
        # Folders of pieces are read group by group, by the keys that a new optimizer's groups have: no stamp there.
        file[stamp.STAMP] = stamp.MARK


def warn_of_leaving(engine: Engine, state: str) -> bool:
    """Say what going on without us, or from a state that is not full, would change.

    Args:
        engine: The engine.
        state: What checkpoints carry.

    Returns:
        Whether it was said: not where nothing rotates, nor inside a signal's handler where it takes an exchange.
    """
    alone = engine.parts.matrices.owned and inside_handler()
    if alone or (bump := plain_moments.leaving(engine.parts)) is None:
        return False
    rank_zero_only(print)(
        f"SecondOrder: a run that resumes from this checkpoint goes on {RESUMED[state]}. Without SecondOrder "
        f"it starts with an update at cosine {bump.cosine:.2f} to ours and {bump.length:.2f} of its length."
    )
    return True


@contextmanager
def _aside(engines: Sequence[Engine]) -> Iterator[None]:
    """Let a strategy ask the optimizers for their state as it is.

    Of one without state torch asks a step with gradients of zero, in which it would make some.
    """
    for engine in engines:
        engine.aside = True
    try:
        yield
    finally:
        for engine in engines:
            engine.aside = False


def wrap(strategy: Any, engines: Sequence[Engine], catch_up: Callable[[], None]) -> list[StandIn]:
    """Let a strategy collect weights that are not hidden, and not take a step of its own for one of the training.

    Args:
        strategy: The strategy.
        engines: The engines, one an optimizer.
        catch_up: Called when the optimizers have loaded their states.

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
            with _aside(engines):
                return plain_moments.collected([engine.parts for engine in engines], partial(original, optimizer))

        return optimizer_state

    def save(original: Callable[..., None]) -> Callable[..., None]:
        def save_checkpoint(*args: Any, **kwargs: Any) -> None:
            with ExitStack() as stack:
                stack.enter_context(_aside(engines))
                for engine in engines:
                    stack.enter_context(plain_moments.plainly(engine.parts, alone=inside_handler()))
                original(*args, **kwargs)

        return save_checkpoint

    def load(original: Callable[..., Any]) -> Callable[..., Any]:
        def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
            with _aside(engines):
                found = original(*args, **kwargs)
            for engine in engines if is_deepspeed(strategy) else ():
                # It writes into the optimizer's state itself.
                basis.leave(engine.parts.roster, basis.places(engine.parts.roster))
            return found

        return load_checkpoint

    def loaded(original: Callable[..., None]) -> Callable[..., None]:
        def load_optimizer_state_dict(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            catch_up()

        return load_optimizer_state_dict

    found = [
        StandIn(strategy, "lightning_module_state_dict", weights),
        StandIn(strategy, "optimizer_state", state),
        StandIn(strategy, "load_checkpoint", load),
        StandIn(strategy, "load_optimizer_state_dict", loaded),
    ]
    if is_deepspeed(strategy) and not strategy.full_checkpoint:
        # DeepSpeed writes the optimizer's state of its folders itself, from what is there.
        found.append(StandIn(strategy, "save_checkpoint", save))
    return found
