"""How a method that multiplies by an inverse goes with a base."""

from lightning_so.actions.moments import Base
from lightning_so.contract.method import Action


def on_curvature(base: Base, warm: bool) -> Action:
    """The action of a method that multiplies by an inverse: on the base until solved, then whichever the base takes."""
    if not warm:
        return Action.BASE
    return Action.PRECONDITION if base.linear else Action.BEND


def refuse_momentless(name: str, base: Base, group: dict) -> str | None:
    """The reason why a method that preconditions SGD or bends a first moment cannot use a base, or None."""
    if base.linear or base.has_first_moment(group):
        return None
    return f"{name} preconditions SGD or bends a first moment, and this optimizer has none: use SGD, Adam or AdamW."


def all_solved(solved: list[int]) -> bool:
    """Whether every unit of a block has been solved, and there is one."""
    return bool(solved) and min(solved) > 0
