"""The command `lightning-so completion`."""

from typing import Literal

from lightning_so.cli.parser import found, made
from lightning_so.errors import MissingError, installed_by


def command(shell: Literal["bash", "zsh", "tcsh"]) -> int:
    """Print what your shell needs to complete commands, options and their values.

    Exit status: 0 printed, 2 not.

    Examples:
        lightning-so completion bash > ~/.local/share/bash-completion/completions/lightning-so
        lightning-so completion zsh > ~/.zfunc/_lightning-so

    Args:
        shell: bash, zsh or tcsh.

    Returns:
        The exit status.

    Raises:
        MissingError: If what writes it is not installed.
    """
    try:
        import shtab as shtab
    except ImportError as error:
        raise MissingError(f"completion needs shtab: {installed_by('cli')}") from error
    print(made(found(), complete=True).get_completion_script(f"shtab-{shell}"))
    return 0
