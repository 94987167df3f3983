"""What a Trainer logs of the engines."""

from collections.abc import Sequence
from typing import Any

from lightning_so.core.telemetry import Telemetry


def log(trainer: Any, pl_module: Any, telemetry: Sequence[Telemetry]) -> None:
    """Log what the engines did, where that is due.

    Args:
        trainer: The Trainer, at the end of a batch.
        pl_module: Its module.
        telemetry: One an engine.
    """
    if not trainer.log_every_n_steps or trainer.global_step % trainer.log_every_n_steps:
        return
    for index, each in enumerate(telemetry):
        suffix = f"/{index}" if len(telemetry) > 1 else ""
        values = each.scalars()
        pl_module.log_dict({f"{name}{suffix}": value for name, value in values.items()})
        pl_module.log(f"so%{suffix}", 100 * values["so/overhead_frac"], prog_bar=True, logger=False)
