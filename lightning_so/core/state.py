"""Portable state: plain tensors and numbers, keyed by the parameters' names, all checked before any is loaded."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_so.core.block import Stack
from lightning_so.core.errors import StateError
from lightning_so.core.method import Method

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine

FORMAT = 1


def named_tensors(method: Method, stack: Stack) -> Iterator[tuple[str, Tensor]]:
    """The tensors a method keeps of a stack, each of shape (B, ...), under names that do not depend on the stack."""
    if stack.stats is not None:
        yield from method.tensors(stack.stats)


def state_dict(engine: "Engine") -> dict[str, Any]:
    """Everything that resuming needs, safe for `torch.load(weights_only=True)`.

    Args:
        engine: The engine, between steps.

    Returns:
        Copies: a later step does not change them.
    """
    warm = _warm(engine)
    blocks = {
        name: {"tensors": {key: tensor.clone() for key, tensor in tensors.items()}, "warm": warm[name]}
        for name, tensors in _block_tensors(engine).items()
    }
    schedule = engine.schedule
    units = {
        _unit_key(engine, number): [schedule.last[number], schedule.next[number], schedule.solved[number]]
        for number in range(len(schedule.units))
    }
    return {
        "format": FORMAT,
        "method": str(engine.method),
        "blocks": blocks,
        "units": units,
        "every": schedule.every,
        "report": asdict(engine.report),
    }


def load_state_dict(engine: "Engine", state: dict[str, Any]) -> None:
    """Load what `state_dict` gave, after checking all of it.

    Args:
        engine: An engine of the same model, method and optimizer class.
        state: The state.

    Raises:
        StateError: If format, method, names or shapes differ; nothing is changed then.
    """
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise StateError(
            f"state format is {found!r}, this version reads {FORMAT}: load it with the version that wrote it."
        )
    if state["method"] != str(engine.method):
        raise StateError(
            f"the state is of {state['method']}, this run uses {engine.method}: use the same arguments, or "
            f"start without the state."
        )
    mine = _block_tensors(engine)
    _compare("blocks", set(state["blocks"]), set(mine))
    for name, tensors in mine.items():
        theirs = state["blocks"][name]["tensors"]
        _compare(f"tensors of {name}", set(theirs), set(tensors))
        wrong = {
            key: (tuple(theirs[key].shape), tuple(value.shape))
            for key, value in tensors.items()
            if theirs[key].shape != value.shape
        }
        if wrong:
            text = ", ".join(f"{key}: state {a}, model {b}" for key, (a, b) in wrong.items())
            raise StateError(f"{name} has other shapes: {text}. The model or SOAP(cap=...) changed.")
    schedule = engine.schedule
    _compare("units", set(state["units"]), {_unit_key(engine, number) for number in range(len(schedule.units))})
    for name, tensors in mine.items():
        for key, tensor in tensors.items():
            tensor.copy_(state["blocks"][name]["tensors"][key])
    engine.warm = [[bool(state["blocks"][block.name]["warm"]) for block in stack.blocks] for stack in engine.stacks]
    for number in range(len(schedule.units)):
        schedule.last[number], schedule.next[number], schedule.solved[number] = state["units"][
            _unit_key(engine, number)
        ]
    schedule.place(state["every"])
    for name, value in state["report"].items():
        setattr(engine.report, name, value)
    engine.regroup()


def _block_tensors(engine: "Engine") -> dict[str, dict[str, Tensor]]:
    """Every block's tensors by name: views of the live state, not copies."""
    return {
        block.name: {name: tensor[row] for name, tensor in named_tensors(engine.method, stack)}
        for stack in engine.stacks
        for row, block in enumerate(stack.blocks)
    }


def _warm(engine: "Engine") -> dict[str, bool]:
    return {
        block.name: warm
        for stack, flags in zip(engine.stacks, engine.warm, strict=True)
        for block, warm in zip(stack.blocks, flags, strict=True)
    }


def _unit_key(engine: "Engine", number: int) -> str:
    unit = engine.schedule.units[number]
    return f"{engine.stacks[unit.stack].blocks[unit.row].name}:{unit.side}:{unit.tile}"


def _compare(what: str, theirs: set[str], mine: set[str]) -> None:
    if theirs != mine:
        raise StateError(
            f"{what} differ. Only in the state: {sorted(theirs - mine)[:5]}; only in this run: "
            f"{sorted(mine - theirs)[:5]}. "
            f"The state is of another model, route or method."
        )
