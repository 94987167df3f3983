"""Fold what a step has observed."""

from typing import TYPE_CHECKING

from torch import Tensor

from lightning_so.core.stacks.cohort import Batch
from lightning_so.core.stacks.stack import observer
from lightning_so.core.statistics.windows import fold

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def observe(engine: "Engine") -> None:
    """Fold what the methods observe, rows or gradients; nothing for methods that observe none."""
    for recorder in engine.recorders:
        fold(engine, recorder.blocks(), recorder.factor())
        recorder.spend()
    shown = [batch for batches in engine.batches for batch in batches if observer(batch.stack)]
    engine.layout.look([(batch, engine.layout.gradients(batch)) for batch in shown], _show)


def _show(batch: Batch, gradients: Tensor) -> None:
    method = observer(batch.stack)
    assert method is not None
    method.observe(batch.stack.stats, gradients, batch.rows)
