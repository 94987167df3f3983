"""An optimizer's step that is another's for a while."""

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch.optim import Optimizer


class ReplacedStep:
    """Puts a step in the place of an optimizer's own, and marks the optimizer with whose it is."""

    def __init__(
        self, optimizer: Optimizer, mark: str, owner: object, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Put it there.

        Args:
            optimizer: The optimizer.
            mark: Name of the attribute that says whose it is.
            owner: Whose.
            make: Gives the new step, a method of the optimizer, of the one that it had.
        """
        self._optimizer, self._mark, self._original = optimizer, mark, optimizer.step
        setattr(optimizer, mark, owner)
        step = make(self._original)
        # Learning-rate schedulers mark the step they have wrapped, and warn when the mark is gone.
        step.__dict__.update(getattr(getattr(self._original, "__func__", self._original), "__dict__", {}))
        self._ours = MethodType(step, optimizer)
        optimizer.step = self._ours  # type: ignore[method-assign]

    def take_back(self) -> None:
        """Have the optimizer step by itself again, and be nobody's."""
        if self._optimizer.step is self._ours:  # otherwise a scheduler has wrapped it: it only passes calls through
            self._optimizer.step = self._original  # type: ignore[method-assign]
        delattr(self._optimizer, self._mark)
