"""A training whose tensors have shapes and no numbers: a model of any size is made in no memory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from lightning_so.cli.planning.job import Job, Made
from lightning_so.errors import ConfigError

#: Precisions of Lightning in which weights themselves have half of a float's length.
HALVES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
#: Who says them, under either import name of Lightning.
SEEDS = ("lightning_fabric.utilities.seed", "lightning.fabric.utilities.seed")
#: Steps of a training whose configuration does not say: rates of schedules hang on it, and nothing else.
STEPS = 1000


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to itself what Lightning says of seeds."""
    loggers = [logging.getLogger(name) for name in SEEDS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def make(job: Job, what: str) -> Made:
    """Make a training on the meta device.

    Args:
        job: Makes it.
        what: What it is called in errors.

    Returns:
        The training; its parameters and buffers have no numbers.

    Raises:
        ConfigError: If it cannot be made so.
    """
    with _told(what), quiet(), torch.device("meta"):
        made = job()
        if hasattr(made.module, "configure_model"):
            made.module.configure_model()
        dtype = HALVES.get(str(made.trainer.get("precision")))
        if dtype is not None:
            made.module.to(dtype)
    return made


def stepped(made: Made, what: str) -> list[Optimizer]:
    """The optimizers of a training without numbers; see `optimizers`."""
    with _told(what):
        return optimizers(made)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say of errors of the user's code why it was run so."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        said = next(iter(str(error).splitlines()), "")
        raise ConfigError(
            f"{what} cannot be built on the meta device, without its weights' numbers ({type(error).__name__}: "
            f"{said[:200]}). Its __init__, configure_model and configure_optimizers may not read a tensor's value "
            "(.item(), .tolist(), .numpy()): take it from Python's own numbers."
        ) from error


def optimizers(made: Made) -> list[Optimizer]:
    """What `configure_optimizers` gives, without schedules.

    Args:
        made: The training.

    Returns:
        The optimizers, in order.

    Raises:
        ConfigError: If it gives none.
    """
    steps = made.trainer.get("max_steps") or -1
    made.module.trainer = SimpleNamespace(
        estimated_stepping_batches=steps if steps > 0 else STEPS,
        max_steps=steps,
        max_epochs=made.trainer.get("max_epochs") or 1,
        accumulate_grad_batches=made.trainer.get("accumulate_grad_batches") or 1,
        datamodule=made.data,
        world_size=1,
        num_devices=1,
        num_nodes=1,
        current_epoch=0,
        global_step=0,
        global_rank=0,
    )
    try:
        found = list(_optimizers(made.module.configure_optimizers()))
    finally:
        made.module.trainer = None
    if not found:
        raise ConfigError(
            f"configure_optimizers of {type(made.module).__name__} gave no optimizer: return one, such as "
            "torch.optim.AdamW(self.parameters())."
        )
    return found


def _optimizers(found: Any) -> Iterator[Optimizer]:
    """Every form that Lightning takes: one, lists, dicts, or a pair of lists."""
    if isinstance(found, Optimizer):
        yield found
    elif isinstance(found, dict):
        yield from _optimizers(found.get("optimizer"))
    elif isinstance(found, list | tuple):
        pair = len(found) == 2 and all(isinstance(each, list) for each in found)
        for each in found[0] if pair else found:
            yield from _optimizers(each)


def gradients(module: nn.Module) -> None:
    """Give every parameter that is trained a gradient."""
    for param in module.parameters():
        if param.requires_grad and not isinstance(param, UninitializedParameter):
            param.grad = torch.empty_like(param)
