"""The middle of a step of ours, when weights are hidden: no hook of a Trainer comes there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytorch_lightning as pl

from lightning_so.core.step import act


@contextmanager
def inside(happen: Callable[[], Any]) -> Iterator[None]:
    """Have something happen in each step, right after its weights were hidden."""
    begin = act.begin

    def begun(*arguments: Any) -> Any:
        acting = begin(*arguments)
        happen()
        return acting

    with mock.patch.object(act, "begin", begun):
        yield


class Inside(pl.Callback):
    """What `inside` says, as long as a training runs."""

    def happen(self, trainer) -> None:
        """What happens."""
        raise NotImplementedError

    def on_train_start(self, trainer, pl_module) -> None:
        self.context = inside(lambda: self.happen(trainer))
        self.context.__enter__()

    def on_train_end(self, trainer, pl_module) -> None:
        self.context.__exit__(None, None, None)

    def on_exception(self, trainer, pl_module, exception) -> None:
        self.context.__exit__(None, None, None)


class SaveInside(Inside):
    """Saves in the middle of the step after one."""

    def __init__(self, path, at) -> None:
        self.path, self.at = path, at

    def happen(self, trainer) -> None:
        if trainer.global_step == self.at:
            trainer.save_checkpoint(self.path)
