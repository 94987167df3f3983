"""The parser of all commands, made from their signatures and docstrings."""

import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from lightning_so.cli import commands
from lightning_so.version import __version__


class Formatter(DefaultHelpFormatter):
    """Fills paragraphs, and leaves examples on lines of their own."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            textwrap.indent(each, indent) if "\n    " in each else fill(each, width, indent) for each in paragraphs
        )


def found() -> dict[str, Callable[..., int]]:
    """Every command by name: `commands/resume_check.py` is `resume-check`."""
    return {name.replace("_", "-"): _module(name).command for name in _names()}


def whole(function: Callable[..., int]) -> bool:
    """Whether a command takes all that is behind its name as it stands, and parses it itself."""
    return "arguments" in inspect.signature(function).parameters


def described(function: Callable[..., int]) -> str:
    """A command's description: its docstring, without the arguments.

    Args:
        function: The command's.

    Returns:
        The text.

    Example:
        >>> described(described)
        "A command's description: its docstring, without the arguments."
    """
    return inspect.cleandoc(function.__doc__ or "").partition("\n\nArgs:")[0].strip()


def made(functions: dict[str, Callable[..., int]], *, complete: bool = False) -> ArgumentParser:
    """The parser.

    Args:
        functions: The commands by name.
        complete: Whether it has the options too of commands that parse by themselves.

    Returns:
        With one subcommand a command.
    """
    about = "Second-order training for PyTorch Lightning."
    parser = ArgumentParser(prog="lightning-so", description=about, formatter_class=Formatter, version=__version__)
    choices = parser.add_subcommands(dest="name")
    for name, function in functions.items():
        one = ArgumentParser(description=described(function))
        if not whole(function):
            # A command with options by name alone (behind "*") takes what it needs by place: lightning-so report RUN.
            # So does one that takes one thing.
            parameters = inspect.signature(function).parameters.values()
            by_place = len(parameters) == 1 or any(each.kind is each.KEYWORD_ONLY for each in parameters)
            one.add_function_arguments(function, skip={"overrides"}, as_positional=by_place)
        elif complete:
            one = _module(name.replace("-", "_")).parser()
        choices.add_subcommand(name, one, help=described(function).partition("\n")[0])
    return parser


def _names() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(commands.__path__))


def _module(name: str) -> Any:
    return importlib.import_module(f"{commands.__name__}.{name}")
