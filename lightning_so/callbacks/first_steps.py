"""Whether the Trainer steps the optimizers that we work on."""

from typing import Any

from lightning_so.core.engine import Engine
from lightning_so.errors import TrustError

#: Steps that the Trainer may count before one of ours is seen.
SILENCE = 20


class FirstSteps:
    """Watches the first steps of a fit."""

    def __init__(self, engines: list[Engine], trainer: Any) -> None:
        """Remember where the counts are."""
        self._engines, self._first = engines, trainer.global_step
        self._seen = self._count()

    def _count(self) -> int:
        return sum(engine.report.tried for engine in self._engines)

    def check(self, trainer: Any) -> bool:
        """Stop a training that steps other optimizers than ours.

        Args:
            trainer: The Trainer, after a batch.

        Returns:
            Whether one of ours has stepped, so that there is nothing left to watch.

        Raises:
            TrustError: If the Trainer has counted `SILENCE` steps without us.
        """
        if self._count() > self._seen:
            return True
        if trainer.global_step - self._first >= SILENCE:
            names = ", ".join(type(engine.optimizer).__name__ for engine in self._engines)
            raise TrustError(
                f"the Trainer has counted {SILENCE} steps, and none of the optimizers that configure_optimizers gave "
                f"({names}) has stepped: SecondOrder does nothing. Step the objects that self.optimizers() returns."
            )
        return False
