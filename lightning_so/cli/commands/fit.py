"""The command `lightning-so fit`."""

import argparse
from argparse import ArgumentError
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_so.cli.parser import Formatter, described
from lightning_so.errors import ConfigError
from lightning_so.strategies.names import LIGHTNINGS

#: What LightningCLI answers without a model.
ASIDE = ("-h", "--help", "--print_config")


def command(arguments: list[str]) -> int:
    """Train by a configuration, with a second-order method in front of your module's optimizer.

    LightningCLI's fit, and everything that it takes. The callback is there without being listed: the key second_order
    has its arguments, or is false. What is said here goes before what the files say.
    Exit status: 0 done, 2 not.

    Examples:
        lightning-so fit --config my.yaml
        lightning-so fit --config my.yaml --method muon --trainer.max_steps 10
        lightning-so fit --model package.Module --data package.Data --method soap --print_config > my.yaml
        lightning-so fit --config my.yaml --second_order.max_overhead 0.1
        lightning-so fit --config my.yaml --second_order false
        lightning-so fit --model.help package.Module

    In the file:
        model: {class_path: package.Module, init_args: {width: 64}}
        data: {class_path: package.Data}
        trainer: {max_epochs: 10}
        second_order: {method: soap, max_overhead: 0.1, route: {base: ["*.lora_*"]}}

    Args:
        arguments: LightningCLI's; and --method, short for --second_order.method.

    Returns:
        The exit status.

    Raises:
        ConfigError: If the configuration is wrong, or cannot be built.
    """
    from lightning_so.cli.recipe import content, imported, lightning, named

    files, model, rest = arranged(arguments)
    path = model or next(filter(None, (named(content(file), "model") for file in reversed(files))), None)
    keys = [each.partition("=")[0] for each in rest]
    if path is None and not any(key in ASIDE or key.endswith(".help") for key in keys):
        raise ConfigError(
            "it is not said which class the model is: give --model package.Module, or write "
            "'model: {class_path: package.Module}' into the file."
        )
    _run(rest, LIGHTNINGS[0] if path is None else lightning(imported(path)))
    return 0


def arranged(arguments: list[str]) -> tuple[list[Path], str | None, list[str]]:
    """The arguments in LightningCLI's order and spelling: what is said on the command line goes before the files.

    Args:
        arguments: As typed.

    Returns:
        The files, the model's class if one is given, all arguments. Classes stand before the files, whose parts may
        lack a class_path, and behind them, where they may have another.

    Example:
        >>> arranged(["--method", "soap", "--config", "my.yaml", "--model=p.M"])[2]
        ['--model=p.M', '--config=my.yaml', '--model=p.M', '--second_order.method', 'soap']
    """
    first = argparse.ArgumentParser("lightning-so fit", add_help=False, allow_abbrev=False)
    first.add_argument("-c", "--config", type=Path, action="append", default=[])
    first.add_argument("--model")
    first.add_argument("--data")
    known, rest = first.parse_known_args(arguments)
    classes = [f"--{key}={value}" for key in ("model", "data") if (value := getattr(known, key))]
    short = [each.partition("=")[0].split(".")[0] == "--method" for each in rest]
    rest = [f"--second_order.{each[2:]}" if ours else each for each, ours in zip(rest, short)]
    files = [f"--config={file}" for file in known.config]
    return known.config, known.model, [*classes, *files, *(classes if files else []), *rest]


def parser() -> Any:
    """The parser, of which shells complete what was typed.

    Returns:
        LightningCLI's, of modules of the Lightning that is installed.
    """
    base = _cli(LIGHTNINGS[0])

    class Made(base):
        """Parses nothing."""

        def parse_arguments(self, parser: Any, args: Any) -> None:
            """Leave it."""
            self.config = Namespace(subcommand="fit", fit=Namespace(seed_everything=False))

        def instantiate_classes(self) -> None:
            """Make nothing."""

        def _run_subcommand(self, subcommand: str) -> None:
            """Run nothing."""

    return Made()._subcommand_parsers["fit"]


def _cli(name: str) -> Any:
    """A LightningCLI with one subcommand."""
    from lightning_so.cli.wired import cli

    base = cli(name)

    class CLI(base):
        """Fits."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            """LightningCLI's, of fit."""
            return {"fit": base.subcommands()["fit"]}

    return CLI


def _run(arguments: list[str], name: str) -> None:
    from lightning_so.cli.wired import ELSE, NAMED, line

    help_of = {"description": described(command), "exit_on_error": False, "usage": "lightning-so fit [options]"}
    try:
        _cli(name)(
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_kwargs={
                "prog": "lightning-so",
                "formatter_class": Formatter,
                "exit_on_error": False,
                "fit": help_of,
            },
            args=["fit", *arguments],
        )
    except ArgumentError as error:
        said = line(error).replace(f"Problem with given class_path '{NAMED}': ", "")
        ours = "second_order" in said
        more = f".{ELSE}" if ours and said.endswith("is not accepted") else ""
        listing = "--second_order.help" if ours else "--help"
        raise ConfigError(f"{said}{more} (lightning-so fit {listing} lists what there is.)") from error
