"""One of the three runs of a resume check."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.seed import seed_everything

from lightning_so.callbacks.resume.witness import Witness
from lightning_so.errors import ConfigError
from lightning_so.strategies.names import LIGHTNINGS

#: Gives a new module, its data (or None) and the arguments of its Trainer, at every call.
Recipe = Callable[[], tuple[Any, Any, dict[str, Any]]]


@dataclass(frozen=True)
class Phase:
    """One run.

    Attributes:
        title: What messages call it.
        recipe: Gives module, data and arguments.
        folder: Where what it saw is written.
        mark: After how many steps names of the weights are noted.
        end: After how many steps it ends.
        seed: What `seed_everything` gets before anything is made.
        save: Where it saves a checkpoint at its end; None for none.
        resume: The checkpoint that it goes on from; None to start anew.
    """

    title: str
    recipe: Recipe
    folder: Path
    mark: int
    end: int
    seed: int
    save: Path | None = None
    resume: Path | None = None


def perform(phase: Phase, *, alone: bool = False) -> None:
    """Train.

    Args:
        phase: The run.
        alone: Whether several ranks are refused.

    Raises:
        ConfigError: If the recipe does not give what it should, or several ranks where one is allowed.
    """
    seed_everything(phase.seed, workers=True, verbose=False)
    made = phase.recipe()
    if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[2], dict)):
        raise ConfigError(
            f"the recipe gave {type(made).__name__}: it must return a tuple of a LightningModule, its data (or None) "
            "and a dict of Trainer arguments."
        )
    module, data, arguments = made
    if getattr(module, "_trainer", None) is not None:
        raise ConfigError("the recipe gave a module that was trained before: make a new one at every call.")
    name = namespace(module)
    witness = Witness(phase.folder, phase.mark, phase.end, phase.save)
    trainer = importlib.import_module(name).Trainer(**quiet(name, arguments, phase.folder, witness))
    if alone and trainer.world_size > 1:
        raise ConfigError(f"this_process trains in one rank, the Trainer has {trainer.world_size}: use fresh_process.")
    trainer.fit(module, data, ckpt_path=phase.resume, weights_only=True)


def namespace(module: Any) -> str:
    """The import name of the Lightning that a module belongs to: each Trainer takes modules of its own name only.

    Args:
        module: A LightningModule, compiled or not.

    Returns:
        "pytorch_lightning" or "lightning.pytorch".

    Raises:
        ConfigError: If it is no LightningModule.
    """
    module = getattr(module, "_orig_mod", module)
    for name in LIGHTNINGS:
        if isinstance(module, importlib.import_module(name).LightningModule):
            return name
    raise ConfigError(f"the recipe gave {type(module).__name__} first: it must be a LightningModule.")


def quiet(name: str, arguments: dict[str, Any], folder: Path, witness: Witness) -> dict[str, Any]:
    """A Trainer's arguments without what writes or draws, and with a witness as the last callback.

    Args:
        name: The import name of Lightning.
        arguments: The user's.
        folder: Where anything that is written all the same goes.
        witness: The callback.

    Returns:
        Arguments that train the same.
    """
    callbacks = importlib.import_module(f"{name}.callbacks")
    dropped = (callbacks.Checkpoint, callbacks.ProgressBar, callbacks.ModelSummary)
    given = arguments.get("callbacks") or []
    given = given if isinstance(given, list) else [given]
    return {
        **arguments,
        "callbacks": [*(each for each in given if not isinstance(each, dropped)), witness],
        # Not False: callbacks that log (LearningRateMonitor) refuse a Trainer without a logger.
        "logger": importlib.import_module(f"{name}.loggers.logger").DummyLogger(),
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        # These would keep the witness from stopping it.
        "min_steps": None,
        "min_epochs": None,
    }


def read(phase: Phase) -> list[dict[str, Any]]:
    """What a run has left, by rank."""
    ranks = sorted(phase.folder.glob("rank*.pt"), key=lambda path: int(path.stem[4:]))
    return [torch.load(path, weights_only=True) for path in ranks]
