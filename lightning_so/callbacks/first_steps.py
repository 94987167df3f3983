"""Whether the Trainer steps the optimizers that we work on, and whether it is a training that second order helps."""

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_so.callbacks import caveats
from lightning_so.core.engine import Engine
from lightning_so.core.options import Part
from lightning_so.errors import TrustError

#: Steps that the Trainer may count before one of ours is seen.
SILENCE = 20


class FirstSteps:
    """Watches the first steps of a fit."""

    def __init__(self, engines: list[Engine], trainer: Any) -> None:
        """Remember where the counts are, and say what is known of such models."""
        self._engines, self._first = engines, trainer.global_step
        self._seen, self._batch = self._count(), False
        blocks = [block for engine in engines for block in engine.plan.blocks]
        _say(caveats.of_model(trainer.lightning_module, blocks, trainer.global_step))

    def _count(self) -> int:
        return sum(engine.report.tried for engine in self._engines)

    def check(self, trainer: Any, batch: Any) -> bool:
        """Stop a training that steps other optimizers than ours; of the first batch say what is known of such.

        Args:
            trainer: The Trainer, after a batch.
            batch: The batch.

        Returns:
            Whether one of ours has stepped or all rest, so that there is nothing left to watch.

        Raises:
            TrustError: If the Trainer has counted `SILENCE` steps without us.
        """
        if not self._batch:
            self._batch = True
            _say(caveats.of_batch(batch, trainer.accumulate_grad_batches * trainer.world_size))
        if self._count() > self._seen or all(engine.part is Part.RESTS for engine in self._engines):
            return True
        if trainer.global_step - self._first >= SILENCE:
            names = ", ".join(type(engine.optimizer).__name__ for engine in self._engines)
            raise TrustError(
                f"the Trainer has counted {SILENCE} steps, and none of the optimizers that configure_optimizers gave "
                f"({names}) has stepped: SecondOrder does nothing. Step the objects that self.optimizers() returns."
            )
        return False


def _say(what: list[str]) -> None:
    for each in what:
        rank_zero_warn(f"SecondOrder: {each}")
