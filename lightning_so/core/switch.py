"""Another method in front of the same base, or none, between two steps of a training."""

import torch

from lightning_so.core.assembly import assemble
from lightning_so.core.engine import Engine
from lightning_so.core.options import Options, Part
from lightning_so.errors import ConfigError


@torch.no_grad()
def switch(engine: Engine, options: Options | None) -> None:
    """Have an engine work as other options say, once it is warm, or not at all: a collective.

    Moments go back to plain coordinates, first ones exactly, and the base steps alone from the next step on. What was
    asked for watches meanwhile: it observes and solves, and changes nothing. It acts from the step on at which no block
    waits for a solve any more.

    Args:
        engine: The engine, between steps.
        options: What is asked for now; None for the base alone.

    Raises:
        ConfigError: If a step is underway, or optimizer, method and model do not fit together; nothing is changed then.
    """
    if engine.prepared:
        raise ConfigError(
            "switch: a step of the optimizer is underway, with weights hidden and gradients rotated. Call it between "
            "two steps, as in on_train_batch_end."
        )
    new = None if options is None else assemble(engine.host, options, engine.report)
    engine.disarm()
    engine.depart()
    report = engine.report
    report.rotated = report.bent = report.preconditioned = 0
    engine.part = Part.RESTS
    if options is not None and new is not None:
        new.units.schedule.restart(report.step)
        engine.options, engine.parts, engine.part = options, new, Part.WATCHES
        engine.tell(engine.plan)
        engine.arm()
