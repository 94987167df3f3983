"""Whether a state is of this format and method."""

from typing import TYPE_CHECKING, Any

from lightning_so.errors import StateError

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


FORMAT = 4


def check_header(engine: "Engine", state: dict[str, Any]) -> None:
    """Refuse a state of another format or method.

    Args:
        engine: The engine.
        state: The state.

    Raises:
        StateError: If format or method differ.
    """
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise StateError(
            f"state format is {found!r}, this version reads {FORMAT}: load it with the version that wrote it."
        )
    if state["method"] != engine.plan.method:
        raise StateError(
            f"the state is of {state['method']}, this run uses {engine.plan.method}: use the same arguments, or "
            f"start without the state."
        )
