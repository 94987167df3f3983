"""Whether a state is of this format and method."""

from typing import Any

from lightning_so.errors import StateError

#: Arguments as files of before have them, and what they are now: the state is the same. Of what they did not have yet
#: the value that does what was done then says nothing.
SINCE = {"precision='fp32'": "precision='auto'", ", polish=False": "", ", whiten=False": ""}


def check_header(state: Any, number: int, method: str) -> None:
    """Refuse a state of another format or method.

    Args:
        state: The state.
        number: The format that is read.
        method: The method or the rules of this run, as text.

    Raises:
        StateError: If format or method differ.
    """
    found = state.get("format") if isinstance(state, dict) else type(state).__name__
    if found != number:
        raise StateError(
            f"state format is {found!r}, this version reads {number}: load it with the version that wrote it."
        )
    if _now(state["method"]) != _now(method):
        raise StateError(
            f"the state is of {state['method']}, this run uses {method}: use the same arguments, or "
            f"start without the state."
        )


def _now(method: str) -> str:
    """A method's text, as that of today's defaults."""
    for before, now in SINCE.items():
        method = method.replace(before, now)
    return method
