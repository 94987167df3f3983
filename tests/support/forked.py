"""Processes that are forked off one that has imported everything, once for a session: a new Python takes seconds."""

import os
import runpy
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

from tests.support.peers import PEERS

ROOT = Path(__file__).parents[2]


def forking():
    """The context of `multiprocessing` that forks them."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preloaded"])
    return context


def main(name, arguments, out, err) -> None:
    """What `python -m` does, in a process of its own."""
    for number, path in ((1, out), (2, err)):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)
    os.chdir(ROOT)
    sys.path.append(str(PEERS))  # What was imported from there is looked up again by its metadata.
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def module(folder, name, *arguments, timeout=300):
    """Run `python -m name arguments`, and give what `subprocess.run` would.

    Args:
        folder: Where it is written what the module prints.
        name: The module; it must not start Python anew by its command line, as Lightning's launcher of ranks does.
        arguments: Its arguments.
        timeout: Seconds that it may take.
    """
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    process = forking().Process(target=main, args=(name, [*map(str, arguments)], out, err))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise subprocess.TimeoutExpired(name, timeout)
    return subprocess.CompletedProcess(name, process.exitcode, out.read_text(), err.read_text())
