"""What is to be planned: a training's module and what is said of its Trainer, from a configuration or a class."""

import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from lightning_so.callbacks.matrix_free import MatrixFree
from lightning_so.callbacks.second_order import SecondOrder
from lightning_so.cli.recipe import Config, imported, lightning
from lightning_so.contract.known import called
from lightning_so.core.options import Options
from lightning_so.core.plan.mixture import Mixture
from lightning_so.errors import ConfigError

#: How a configuration's file ends; what else is given is the dotted name of a class.
FILES = (".yaml", ".yml")

C = TypeVar("C")


@dataclass(frozen=True)
class Made:
    """A training, made once.

    Attributes:
        module: The LightningModule.
        data: The data module; None without.
        trainer: The Trainer's arguments.
    """

    module: Any
    data: Any
    trainer: dict[str, Any] = field(default_factory=dict)

    def callback(self, kind: type[C]) -> C | None:
        """The one of a kind among the Trainer's callbacks; None without."""
        callbacks = self.trainer.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        return next((each for each in callbacks if isinstance(each, kind)), None)

    def options(self, method: str | None) -> Options:
        """How SecondOrder is asked to work.

        Args:
            method: The name of a method, which takes the place of the callback's.

        Returns:
            The callback's options, with the method that was named; without both, those of `SecondOrder()`.

        Raises:
            ConfigError: If the training has a method on the whole vector alone.
        """
        callback, whole = self.callback(SecondOrder), self.callback(MatrixFree)
        if callback is None and whole is not None and method is None:
            raise ConfigError(
                f"the configuration has MatrixFree({type(whole.method).__name__}) alone, which keeps vectors; plans "
                "are of methods on layers and matrices: give --method=soap, kfac or muon to plan that in its place."
            )
        options = (callback or SecondOrder()).options
        return options if method is None else replace(options, mixture=Mixture.of(called(method, f"--method={method}")))


#: Makes a training anew at every call.
Job = Callable[[], Made]


def job(target: str, model: str | None, data: str | None, arguments: Sequence[str]) -> Job:
    """What is to be planned.

    Args:
        target: A configuration's file, or the dotted name of a LightningModule's class.
        model: Dotted name of the module's class, where the file does not name it.
        data: Dotted name of the data module's class, where the file does not name it.
        arguments: LightningCLI's, after the file's; or those of the class.

    Returns:
        What makes it.

    Raises:
        ConfigError: If there is no such file or class, or an argument is wrong.
    """
    if target.endswith(FILES):
        config = Config(Path(target), model, data, tuple(arguments))
        config.check()
        return lambda: Made(*config())
    if "/" in target or "." not in target:
        raise ConfigError(
            f"{target!r} is neither a configuration (a file that ends with {' or '.join(FILES)}) nor the dotted name "
            "of a LightningModule (package.module.Class)."
        )
    cls = imported(target)
    lightning(cls)
    return _class(cls, target, arguments)


def _class(cls: type, name: str, arguments: Sequence[str]) -> Job:
    """What makes a class, its arguments as they were typed behind "--"."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "of")
    typed = [f"--of.{each[2:]}" if each.startswith("--") else each for each in arguments]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parsed = parser.parse_args(typed)
        except ArgumentError as error:
            said = str(error.message or error).replace("--of.", "--").replace('"of.', '"').splitlines()[0]
            raise ConfigError(f"{name}: {said}. Give its arguments behind '--', such as -- --width=512.") from error
    return lambda: Made(parser.instantiate(parsed)["of"], None)
