"""The command `lightning-so`, also as `python -m lightning_so.cli`.

Options are made from a function's signature and docstring by jsonargparse: LightningCLI, whose configurations the
commands read, needs it anyway, so that one extra (`[cli]`) brings both, and both spell options alike.
"""

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from lightning_so.errors import ConfigError, LaunchError, StateError, TrustError, installed_by

#: The exit status of a command that could not do its work; 1 is a bad result.
FAILED = 2


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
    if find_spec("jsonargparse") is None:
        print(f"lightning-so needs jsonargparse: {installed_by('cli')}", file=sys.stderr)
        return FAILED
    from lightning_so.cli.parser import found, made, whole

    if os.getcwd() not in sys.path and "" not in sys.path:
        # As python -m has it: configurations name classes of the project that one stands in.
        sys.path.insert(0, os.getcwd())
    given = list(sys.argv[1:] if arguments is None else arguments)
    functions = found()
    if given and given[0] in functions and whole(functions[given[0]]):
        return _run(given[0], functions[given[0]], {"arguments": given[1:]})
    ours, rest = split(given)
    parser = made(functions)
    if ours and ours[0] in functions:
        ours = flagged(ours, functions[ours[0]])
    chosen = parser.parse_args(ours)
    options = chosen[chosen.name].as_dict()
    if "overrides" in inspect.signature(functions[chosen.name]).parameters:
        options["overrides"] = rest
    elif rest:
        parser.error(f"{chosen.name} takes nothing behind '--', got {rest}")
    return _run(chosen.name, functions[chosen.name], options)


def _run(name: str, function: Callable[..., int], options: dict[str, Any]) -> int:
    try:
        status = function(**options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Who reads has enough, as in "| head"; at its end Python would flush into the closed pipe once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ConfigError, StateError, LaunchError, TrustError) as error:
        print(f"lightning-so {name}: {error}", file=sys.stderr)
    except Exception:
        # Python's own exit status would be 1, which says something else here.
        traceback.print_exc()
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
