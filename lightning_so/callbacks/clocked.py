"""What callbacks share that time steps: validation is no part of one."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Protocol

from torch import nn

from lightning_so.callbacks.names import Callback


class Clock(Protocol):
    """Times steps."""

    def leave(self) -> None:
        """What comes now is no part of a step."""

    def come_back(self) -> None:
        """The step goes on."""


class Clocked(Callback, ABC):
    """Leaves validation out of the time of a step."""

    @abstractmethod
    def clocks(self) -> Iterable[Clock]:
        """What times the steps of the fit that runs."""

    def on_validation_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Leave what comes now out."""
        for clock in self.clocks():
            clock.leave()

    def on_validation_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Go on with the step."""
        for clock in self.clocks():
            clock.come_back()
