"""Functions of ours in the place of a strategy's own: callbacks have no hook around a step, a save or an end."""

from collections.abc import Callable
from typing import Any


def ending(strategy: Any, end: Callable[[], None]) -> "StandIn":
    """Have something done when a strategy ends: after an exception Lightning asks it alone, not callbacks."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def teardown() -> None:
            end()
            original()

        return teardown

    return StandIn(strategy, "teardown", make)


class StandIn:
    """Stands in the place of an object's own function until it is released.

    Another may stand around it, and keeps it: released, it passes calls through, whoever still has it.
    """

    def __init__(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Take the place.

        Args:
            owner: The object.
            name: The function's name.
            make: Gives what is called instead, of what was called before.
        """
        self._owner, self._name, self._standing = owner, name, True
        self._before = owner.__dict__.get(name)
        self._original = getattr(owner, name)
        self._instead = make(self._original)
        owner.__dict__[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call what stands here now."""
        return (self._instead if self._standing else self._original)(*args, **kwargs)

    def release(self) -> None:
        """Give the place back to whom it was taken from, unless another stands around it."""
        self._standing = False
        if self._owner.__dict__.get(self._name) is not self:
            return
        before = self._before
        while isinstance(before, StandIn) and not before._standing:
            before = before._before
        if before is None:
            del self._owner.__dict__[self._name]
        else:
            self._owner.__dict__[self._name] = before
