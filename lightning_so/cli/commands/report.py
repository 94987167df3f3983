"""The command `lightning-so report`."""

import os
from pathlib import Path

from lightning_so.errors import ConfigError, StateError
from lightning_so.report.folder import recordings
from lightning_so.report.page import GENERATOR, page
from lightning_so.report.run import Run
from lightning_so.report.verdict.judge import judge

#: Of a file, where it says what made it.
BEGIN = 2000
#: What reading raises where a recording's parts are of another kind than they should be.
MISREAD = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError)


def command(run: Path, *, against: Path | None = None, out: Path | None = None, replace: bool = False) -> int:
    """Write one HTML page of a run from its recordings: what went well, which layer did not and why, and the pictures.

    RUN is the folder that `SecondOrder` and `Recorder` write recordings to: trainer.log_dir, else default_root_dir. The
    page needs no other file and no network. Exit status: 0 written, 2 not.

    Examples:
        lightning-so report lightning_logs/version_0
        lightning-so report runs/soap --against runs/adamw --out both.html

    Args:
        run: The run's folder, or a folder of recordings; of several recordings the newest is taken.
        against: Another run, to stand beside it.
        out: The page; RUN/report.html if not given.
        replace: Whether a report that is there already is written over; no other file ever is.

    Returns:
        The exit status.

    Raises:
        ConfigError: If what draws is not installed.
        StateError: If there is no recording, one cannot be read, or a file is in the way.
    """
    out = out or (run if run.is_dir() else run.parent) / "report.html"
    _free(out, replace)
    found = [recordings(folder) for folder in (run, *(() if against is None else (against,)))]
    names = _names([run, *(() if against is None else (against,))])
    runs = [Run(name, each) for name, each in zip(names, found)]
    try:
        content = page(runs)
    except ConfigError:
        raise  # What draws is not installed.
    except MISREAD as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise StateError(
            f"{run} holds a recording whose parts are not those of its version ({said}): take another recording of the "
            "run; if this one was not changed, it is a fault of ours."
        ) from error
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, out)
    except OSError as error:
        raise StateError(
            f"{out} cannot be written ({error.strerror or error}): give another place, --out FILE."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    for each in runs:
        for finding in judge(each).findings:
            print(f"{each.name}: {finding.where}: {finding.what}")
    print(f"{out} ({out.stat().st_size / 2**20:.1f} MiB)")
    return 0


def _free(out: Path, replace: bool) -> None:
    """Raise `StateError` if a file is in the way that is not to be written over."""
    if not out.exists():
        return
    if not (out.is_file() and f'content="{GENERATOR}"' in _begin(out)):
        raise StateError(
            f"{out} is there, and is no report: nothing is written over it. Give another place, --out FILE."
        )
    if not replace:
        raise StateError(f"{out} is there already: give another place, --out FILE, or --replace.")


def _begin(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(BEGIN)


def _names(folders: list[Path]) -> list[str]:
    """What runs are called: the ends of their paths that tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    length = 1
    while len({each[-length:] for each in parts}) < len(parts) and length < max(map(len, parts)):
        length += 1
    names = ["/".join(each[-length:]) for each in parts]
    return names if len(set(names)) == len(names) else [f"{name} ({number})" for number, name in enumerate(names, 1)]
