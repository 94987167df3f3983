"""The check: train, train and stop, resume, compare."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lightning_so.callbacks.resume.compare import Notes, compare_weights, compare_work, reasons
from lightning_so.callbacks.resume.launch import Launch, fresh_process
from lightning_so.callbacks.resume.phase import Phase, Recipe, read
from lightning_so.callbacks.resume.verdict import ResumeCheck
from lightning_so.errors import ConfigError, LaunchError


def resume_check(
    recipe: Recipe,
    *,
    steps: int,
    stop: int,
    resumed: Recipe | None = None,
    tolerance: float = 0.0,
    seed: int = 0,
    launch: Launch = fresh_process,
    tell: Callable[[str], object] | None = None,
) -> ResumeCheck:
    """Whether a training that stops and resumes from Lightning's checkpoint equals one that does not, for your model.

    Three runs, each from new objects: `steps` steps; `stop` steps and `trainer.save_checkpoint`; on from there to
    `steps`. Loggers, checkpoint callbacks and progress bars are left out of all three. The runs' batches, random
    states and learning rates are noted as well, so that the result says what a difference comes from.

    Args:
        recipe: Gives a new module, its data (what `Trainer.fit` takes second, or None) and a dict of Trainer arguments.
        steps: Optimizer steps of the whole training.
        stop: Optimizer steps before the stop.
        resumed: The recipe of the resumed run where that is another: other devices, strategy, batch size.
        tolerance: The largest difference of a weight that counts as equal; 0 asks for the same bits.
        seed: What `seed_everything` gets at the start of each run.
        launch: `fresh_process`, for importable recipes under any strategy, or `this_process`, for any in one rank.
        tell: Gets a line when a run starts.

    Returns:
        The verdict; as text it says all.

    Raises:
        ConfigError: If an argument or a recipe cannot work.
        LaunchError: If a run fails.

    Example:
        >>> from pytorch_lightning.demos.boring_classes import BoringModel
        >>> from lightning_so.callbacks.resume.launch import this_process
        >>> quiet = {"accelerator": "cpu", "limit_train_batches": 2, "limit_val_batches": 0}
        >>> found = resume_check(lambda: (BoringModel(), None, quiet), steps=4, stop=2, launch=this_process)
        >>> found.weights.total
        2
    """
    if not 0 < stop < steps:
        raise ConfigError(f"resume_check(steps={steps}, stop={stop}): stop must lie between 0 and steps.")
    if not tolerance >= 0:
        raise ConfigError(f"resume_check(tolerance={tolerance}): it must be 0 or more.")
    with tempfile.TemporaryDirectory(prefix="resume-check-") as name:
        folder = Path(name)
        saved = folder / "stopped.ckpt"
        whole = Phase("the run without a stop", recipe, folder / "whole", stop, steps, seed)
        stopped = replace(whole, title="the run that stops", folder=folder / "stopped", end=stop, save=saved)
        after = Phase("the resumed run", resumed or recipe, folder / "resumed", stop, steps, seed, resume=saved)
        first, second, third = (_run(phase, launch, tell) for phase in (whole, stopped, after))
    return _verdict(first, second, third, steps, stop, tolerance)


def _run(phase: Phase, launch: Launch, tell: Callable[[str], object] | None) -> Notes:
    if tell is not None:
        tell(f"{phase.title}, to step {phase.end}")
    phase.folder.mkdir()
    launch(phase)
    notes = read(phase)
    if not notes:
        raise LaunchError(f"{phase.title} ended and left nothing: it was interrupted before its end.")
    if notes[0]["ended"] < phase.end:
        raise ConfigError(
            f"{phase.title} ended after {notes[0]['ended']} of {phase.end} steps: raise max_steps, max_epochs or the "
            "amount of data, or take away what stops it early."
        )
    return notes


def _verdict(whole: Notes, stopped: Notes, resumed: Notes, steps: int, stop: int, tolerance: float) -> ResumeCheck:
    weights, differences = compare_weights(whole[0]["weights"], resumed[0]["weights"]), compare_work(whole, resumed)
    worlds = [f"{notes[0]['ranks']} rank(s), {notes[0]['strategy']}" for notes in (whole, resumed)]
    done = "; ".join(
        f"{counts['step']} steps, {counts['solves']} solves, {counts['rotated']} blocks rotated, "
        f"{counts['preconditioned']} preconditioned, {counts['bent']} bent"
        for counts in whole[0]["counts"]
    )
    same = not weights.differing and not differences
    return ResumeCheck(
        steps,
        stop,
        (worlds[0], worlds[1]),
        weights,
        differences,
        done or "no SecondOrder",
        () if same else reasons(whole, stopped, resumed, stop),
        tolerance,
    )
