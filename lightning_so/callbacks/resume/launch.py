"""The two ways to start a run: in a process of its own, and here."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pytorch_lightning.utilities.seed import isolate_rng

from lightning_so.callbacks.resume.phase import Phase, perform
from lightning_so.errors import ConfigError, LaunchError

#: What launchers set for their ranks; a run that is started from inside such a process must not take it for its own.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: What a process of its own runs, and files in the folder of its phase.
CHILD = "lightning_so.callbacks.resume.child"
REQUEST, ERROR, LOG = "phase.pickle", "error.txt", "log.txt"
#: The way out where a process of its own cannot be had.
HERE = "pass launch=this_process (lightning_so.callbacks.resume.launch) for runs in one rank"


#: Runs a phase to its end.
Launch = Callable[[Phase], None]


def fresh_process(phase: Phase) -> None:
    """Run a phase in a process of its own, from which Lightning may start more: nothing of an earlier run is there.

    Args:
        phase: The run; its recipe is pickled, so it must be importable.

    Raises:
        ConfigError: If the recipe cannot be had in another process.
        LaunchError: If the run fails.
    """
    if getattr(phase.recipe, "__module__", type(phase.recipe).__module__) == "__main__":
        raise ConfigError(
            "the recipe is defined in __main__ (a script or a notebook), where another process cannot import it. "
            f"Move it to a module, or {HERE}."
        )
    try:
        request = pickle.dumps(phase)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"the recipe cannot be sent to another process ({error}). Give a function at the top of a module, or a "
            f"dataclass with __call__; or {HERE}."
        ) from error
    (phase.folder / REQUEST).write_bytes(request)
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    command = [sys.executable, "-m", CHILD, str(phase.folder)]
    with (phase.folder / LOG).open("w") as log:
        output = {"stdout": log, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        # A session of its own, so that an interrupt reaches all of its ranks.
        with subprocess.Popen(command, env=environment, start_new_session=True, **output) as process:
            try:
                code = process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
    if code:
        said = phase.folder / ERROR
        last = "\n".join((phase.folder / LOG).read_text(errors="replace").splitlines()[-12:])
        why = said.read_text() if said.exists() else f"exit status {code}; it printed last:\n{last}"
        raise LaunchError(f"{phase.title} failed: {why}")


def this_process(phase: Phase) -> None:
    """Run a phase here: quick, for any recipe, in one rank.

    Args:
        phase: The run.

    Raises:
        ConfigError: If its Trainer has several ranks, or the recipe gives a module that was trained before.
        LaunchError: If the run fails.
    """
    with isolate_rng(), _same_environment():
        try:
            perform(phase, alone=True)
        except ConfigError:
            raise
        except Exception as error:
            raise LaunchError(f"{phase.title} failed: {type(error).__name__}: {error}") from error


@contextmanager
def _same_environment() -> Iterator[None]:
    """Seeds travel to workers in variables; put back what was there."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
