"""A training whose tensors have shapes and no numbers: a model of any size is made in no memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from lightning_so.cli.planning.job import Job, Made
from lightning_so.errors import ConfigError

#: Precisions of Lightning in which weights themselves have half of a float's length.
HALVES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
#: Steps of a training whose configuration does not say: rates of schedules hang on it, and nothing else.
STEPS = 1000


@contextmanager
def weightless() -> Iterator[None]:
    """Have tensors without numbers made inside: their sizes, dtypes and devices are as they will be."""
    # Numbers that are read from files or made from lists may meet them.
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def make(job: Job, what: str) -> tuple[Made, list[Optimizer]]:
    """Make a module and its optimizers; inside `weightless`, without numbers.

    Args:
        job: Makes the module.
        what: What it is called in errors.

    Returns:
        What was made, and the optimizers.

    Raises:
        ConfigError: If it cannot be made so.
    """
    try:
        made = job()
        if hasattr(made.module, "configure_model"):
            made.module.configure_model()
        dtype = HALVES.get(str(made.trainer.get("precision")))
        if dtype is not None:
            made.module.to(dtype)
        return made, optimizers(made)
    except ConfigError:
        raise
    except Exception as error:
        said = next(iter(str(error).splitlines()), "")
        raise ConfigError(
            f"{what} cannot be built without its weights' numbers ({type(error).__name__}: {said[:200]}). Its "
            "__init__, configure_model and configure_optimizers may not read a tensor's value (.item(), .tolist(), "
            ".numpy()): take it from Python's own numbers."
        ) from error


def facts(job: Job, what: str) -> Made:
    """Make a training without numbers, for what is said of its Trainer and its callbacks.

    Args:
        job: Makes the training.
        what: What it is called in errors.

    Returns:
        The training.

    Raises:
        ConfigError: If it cannot be made so.
    """
    with weightless():
        return make(job, what)[0]


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
        if param.requires_grad:
            param.grad = torch.empty_like(param)
