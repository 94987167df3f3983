"""The command `lightning-so`, also as `python -m lightning_so.cli`.

Options are made from a function's signature and docstring by jsonargparse: LightningCLI, whose configurations the
commands read, needs it anyway, so that one extra (`[cli]`) brings both, and both spell options alike.
"""

import importlib
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence

from lightning_so.cli import commands
from lightning_so.errors import ConfigError, LaunchError, StateError, TrustError, installed_by

#: The exit status of a command that could not do its work; 1 is a bad result.
FAILED = 2


def found() -> dict[str, Callable[..., int]]:
    """Every command by name: `commands/resume_check.py` is `resume-check`."""
    modules = (info.name for info in pkgutil.iter_modules(commands.__path__))
    return {
        name.replace("_", "-"): importlib.import_module(f"{commands.__name__}.{name}").command
        for name in sorted(modules)
    }


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our arguments, in jsonargparse's spelling, and those behind "--".

    Args:
        arguments: As typed.

    Returns:
        The two parts.

    Example:
        >>> split(["resume-check", "--resume-devices=1", "--", "--model.d=32"])
        (['resume-check', '--resume_devices=1'], ['--model.d=32'])
    """
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)
    ours = []
    for each in given[:end]:
        name, equals, value = each.partition("=")
        ours.append((f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name) + equals + value)
    return ours, given[end + 1 :]


def flagged(given: Sequence[str], function: Callable[..., int]) -> list[str]:
    """Arguments in which options that are off by themselves may be named alone: "--replace" is "--replace=true".

    Args:
        given: Our arguments.
        function: The command's.

    Returns:
        The same, in jsonargparse's spelling.

    Example:
        >>> def command(run: str, *, replace: bool = False) -> int: ...
        >>> flagged(["report", "a", "--replace", "--out", "b"], command)
        ['report', 'a', '--replace=true', '--out', 'b']
    """
    parameters = inspect.signature(function).parameters.values()
    flags = {f"--{each.name}" for each in parameters if each.default is False}
    after = [*given[1:], "--"]
    alone = [each in flags and then not in ("true", "false") for each, then in zip(given, after)]
    return [f"{each}=true" if bare else each for each, bare in zip(given, alone)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run one command.

    Args:
        arguments: As typed; None for those of this process.

    Returns:
        The exit status.
    """
    try:
        from jsonargparse import ArgumentParser
    except ImportError:
        print(f"lightning-so needs jsonargparse: {installed_by('cli')}", file=sys.stderr)
        return FAILED
    if os.getcwd() not in sys.path and "" not in sys.path:
        # As python -m has it: configurations name classes of the project that one stands in.
        sys.path.insert(0, os.getcwd())
    ours, rest = split(sys.argv[1:] if arguments is None else arguments)
    functions = found()
    parser = ArgumentParser(prog="lightning-so", description="Second-order training for PyTorch Lightning.")
    choices = parser.add_subcommands(dest="name")
    for name, function in functions.items():
        first, _, more = inspect.cleandoc(function.__doc__ or "").partition("\n")
        each = ArgumentParser(description=f"{first} {more.partition('Args:')[0].strip()}")
        # A command that has options by name alone (behind "*") takes what it needs by place: lightning-so report RUN.
        parameters = inspect.signature(function).parameters.values()
        by_place = any(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
        each.add_function_arguments(function, skip={"overrides"}, as_positional=by_place)
        choices.add_subcommand(name, each, help=first)
    if ours and ours[0] in functions:
        ours = flagged(ours, functions[ours[0]])
    chosen = parser.parse_args(ours)
    options = chosen[chosen.name].as_dict()
    if "overrides" in inspect.signature(functions[chosen.name]).parameters:
        options["overrides"] = rest
    elif rest:
        parser.error(f"{chosen.name} takes nothing behind '--', got {rest}")
    try:
        return functions[chosen.name](**options)
    except (ConfigError, StateError, LaunchError, TrustError) as error:
        print(f"lightning-so {chosen.name}: {error}", file=sys.stderr)
    except Exception:
        # Python's own exit status would be 1, which says something else here.
        traceback.print_exc()
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
