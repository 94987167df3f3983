"""A LightningCLI configuration as a recipe: module, data and Trainer arguments, made anew at every call."""

import importlib
from argparse import ArgumentError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_so.cli.wired import cli, line
from lightning_so.errors import ConfigError
from lightning_so.strategies.names import LIGHTNINGS

#: What a configuration that LightningCLI has saved holds besides: arguments of `fit`, which are not used here.
OF_FIT = ("ckpt_path", "weights_only")


@dataclass(frozen=True)
class Config:
    """A configuration file, and what is said otherwise on the command line.

    Attributes:
        file: The YAML file.
        model: Dotted name of the module's class; None if the file has `model.class_path`.
        data: Dotted name of the data module's class; None if the file has `data.class_path`, or no data.
        overrides: LightningCLI's arguments, after the file's.
    """

    file: Path
    model: str | None = None
    data: str | None = None
    overrides: tuple[str, ...] = ()

    def __call__(self) -> tuple[Any, Any, dict[str, Any]]:
        """Make everything anew."""
        cli = self._cli(instantiate=True)
        return cli.model, cli.datamodule, cli.trainer

    def check(self) -> None:
        """Parse, and make nothing.

        Raises:
            ConfigError: If the file or an argument is wrong.
        """
        self._cli(instantiate=False)

    def _cli(self, *, instantiate: bool) -> Any:
        model, nested_model = self._class("model", self.model)
        if model is None:
            raise ConfigError(
                f"{self.file} does not say of which class the model is. Give its name (--model package.module.Class, "
                "and --data for a data module), or write 'model: {class_path: ..., init_args: ...}' into the file."
            )
        data, nested_data = self._class("data", self.data)
        if nested_model != nested_data and data is not None:
            raise ConfigError(f"{self.file}: give class_path to both model and data, or --model and --data.")
        arguments = ["--config", str(self.file), *self.overrides]
        options = {
            "model_class": model,
            "datamodule_class": data,
            "subclass_mode_model": nested_model,
            "subclass_mode_data": nested_data,
            "save_config_callback": None,
            "seed_everything_default": 0,
            "parser_kwargs": {"exit_on_error": False},
            "run": False,
            # What only parses leaves the random state alone.
            "args": [*arguments, *([] if instantiate else ["--seed_everything=false"])],
        }
        try:
            return _class_of_cli(lightning(model), instantiate)(**options)
        except ArgumentError as error:
            raise ConfigError(f"{self.file}: {line(error)}") from error

    def _class(self, key: str, name: str | None) -> tuple[Any, bool]:
        """The class under a key, and whether the file names it."""
        part = content(self.file).get(key)
        path = named({key: part}, key)
        if key == "data" and name is None and path is None and part:
            raise ConfigError(f"{self.file} has data without a class: give its name (--data package.module.Class).")
        return (imported(path), True) if path else (imported(name) if name else None, False)


def content(file: Path) -> dict[str, Any]:
    """What a configuration holds; nothing where it is no table.

    Args:
        file: The YAML file.

    Returns:
        Its keys and values.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        found = yaml.safe_load(file.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{file} cannot be read: it is not there.") from error
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    return found if isinstance(found, dict) else {}


def named(parts: dict[str, Any], key: str) -> str | None:
    """The class that a configuration names under a key, "model" or "data"; None where it names none.

    Args:
        parts: A configuration.
        key: The key.

    Returns:
        The class's dotted name.

    Example:
        >>> named({"model": {"class_path": "package.Module"}}, "model")
        'package.Module'
    """
    part = parts.get(key)
    return part.get("class_path") if isinstance(part, dict) else part if isinstance(part, str) else None


def _class_of_cli(name: str, instantiate: bool) -> Any:
    """A LightningCLI of one import name that makes no Trainer, and nothing at all if not told to."""
    base = cli(name)

    class CLI(base):
        """Parses a configuration."""

        wanted = False

        def add_arguments_to_parser(self, parser: Any) -> None:
            """Let configurations pass that were saved by `fit`."""
            super().add_arguments_to_parser(parser)
            for option in OF_FIT:
                parser.add_argument(f"--{option}", type=Any, default=None, help="Not used here.")

        def before_instantiate_classes(self) -> None:
            """Make no logger: some open files or connections."""
            self.config["trainer"]["logger"] = False

        def instantiate_classes(self) -> None:
            """Make module and data, if that is asked for."""
            if instantiate:
                super().instantiate_classes()

        def instantiate_trainer(self, **kwargs: Any) -> dict[str, Any]:
            """Its arguments."""
            return {**self.config_init["trainer"].as_dict(), **kwargs, "callbacks": self.callbacks()}

    return CLI


def lightning(cls: type) -> str:
    """The import name of the Lightning that a module's class belongs to.

    Args:
        cls: The class.

    Returns:
        "pytorch_lightning" or "lightning.pytorch".

    Raises:
        ConfigError: If it is of neither.
    """
    for name in LIGHTNINGS:
        if isinstance(cls, type) and issubclass(cls, importlib.import_module(name).LightningModule):
            return name
    raise ConfigError(f"{getattr(cls, '__name__', cls)} is no LightningModule of {' or '.join(LIGHTNINGS)}.")


def imported(name: str) -> Any:
    """What a dotted name stands for.

    Args:
        name: "package.module.Class".

    Returns:
        The class.

    Raises:
        ConfigError: If it cannot be imported.

    Example:
        >>> imported("torch.nn.Linear").__name__
        'Linear'
    """
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{name!r} cannot be imported ({error}). It must be package.module.Class, importable from here; "
            "start from the project's root, or set PYTHONPATH."
        ) from error
