"""The command `lightning-so resume-check`."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path


def command(
    config: Path,
    steps: int,
    stop: int,
    devices: int | None = None,
    strategy: str | None = None,
    resume_devices: int | None = None,
    resume_strategy: str | None = None,
    resume_with: str | None = None,
    tolerance: float = 0.0,
    model: str | None = None,
    data: str | None = None,
    overrides: list[str] | None = None,
) -> int:
    """Prove that a training resumed from a checkpoint equals one that did not stop, for your model.

    Trains STEPS steps; trains STOP steps and saves a checkpoint; goes on from there to STEPS; compares final weights,
    plans and counts, and says what a difference comes from. Every run is a process of its own. Arguments of
    LightningCLI can follow behind "--": `-- --model.d=32 --trainer.limit_val_batches=0`.
    Exit status: 0 equal (bit for bit, or within the tolerance), 1 different, 2 could not run.

    Examples:
        lightning-so resume-check --config my.yaml --steps 20 --stop 12
        lightning-so resume-check --config my.yaml --steps 20 --stop 12 --devices 2 --strategy ddp --resume-devices 1

    Args:
        config: A LightningCLI configuration.
        steps: Optimizer steps of the whole training.
        stop: Optimizer steps before the stop.
        devices: Instead of the configuration's trainer.devices.
        strategy: Instead of the configuration's trainer.strategy.
        resume_devices: Devices of the resumed run, where they are others.
        resume_strategy: Strategy of the resumed run, where it is another.
        resume_with: More arguments of LightningCLI for the resumed run alone, such as "--data.batch_size=32".
        tolerance: The largest difference of a weight that counts as equal; 0 asks for the same bits.
        model: The module's class, package.module.Class, where the configuration has no model.class_path.
        data: The data module's class, where the configuration has no data.class_path.
        overrides: Arguments of LightningCLI for all runs.

    Returns:
        The exit status.
    """
    from lightning_so.callbacks.resume.check import resume_check
    from lightning_so.cli.recipe import Config

    given = (*(overrides or ()), *_trainer(devices, strategy))
    recipe = Config(config.absolute(), model, data, given)
    resumed = replace(
        recipe, overrides=(*given, *_trainer(resume_devices, resume_strategy), *shlex.split(resume_with or ""))
    )
    for each in dict.fromkeys((recipe, resumed)):
        each.check()
    found = resume_check(
        recipe,
        steps=steps,
        stop=stop,
        resumed=resumed,
        tolerance=tolerance,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(found)
    return found.exit_code


def _trainer(devices: int | None, strategy: str | None) -> list[str]:
    """LightningCLI's spelling."""
    options = {"devices": devices, "strategy": strategy}
    return [f"--trainer.{name}={value}" for name, value in options.items() if value is not None]
