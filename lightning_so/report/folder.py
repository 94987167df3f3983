"""From a run's folder to the recordings of its ranks."""

import re
from pathlib import Path
from typing import Any

from lightning_so.errors import StateError
from lightning_so.recording.file import read

FILES = "rank-*.json.gz"
#: Folders of recordings in a run's: "recording", "recording-2", ...
FOLDER = re.compile(r"recording(?:-(\d+))?")
#: Where Lightning's loggers put runs below the folder that one gave: lightning_logs/version_3/recording.
BELOW = ("*/recording*", "*/*/recording*", "*/*/*/recording*")


def recordings(run: Path) -> list[dict[str, Any]]:
    """Read the newest recording of a run, or the one that is named.

    Args:
        run: The run's folder, a folder of recordings, or the file of one of the ranks.

    Returns:
        Of each rank that is there one recording, by rank.

    Raises:
        StateError: If there is none, one cannot be read, or they are of several runs.
    """
    folder = _folder(run)
    found = dict[int, dict[str, Any]]()
    for path in sorted(folder.glob(FILES)):
        recording = read(path)
        first = next(iter(found.values()), recording)
        for name, said in (("run", "runs"), ("ranks", "numbers of ranks")):
            if recording[name] != first[name]:
                raise StateError(
                    f"{folder} has recordings of different {said} ({first[name]!r} and, in {path.name}, "
                    f"{recording[name]!r}): move those of one of them to another folder."
                )
        if recording["rank"] in found:
            raise StateError(f"{folder} has two recordings of rank {recording['rank']}: take one of them away.")
        found[recording["rank"]] = recording
    return [found[rank] for rank in sorted(found)]


def _folder(run: Path) -> Path:
    """The folder that holds the files of ranks."""
    if run.is_file():
        run = run.parent
    if not run.is_dir():
        raise StateError(f"{run} is not there: give the folder of a run.")
    if any(run.glob(FILES)):
        return run
    here = [(int(match[1] or 1), path) for path in run.iterdir() if (match := FOLDER.fullmatch(path.name))]
    full = [(number, path) for number, path in here if any(path.glob(FILES))]
    if full:
        return max(full)[1]
    there = sorted({path for pattern in BELOW for path in run.glob(pattern) if any(path.glob(FILES))})
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise StateError(f"{run} is no run's folder, but {there[-1]} below it is{more}: give one of them.")
    raise StateError(
        f"{run} has no recording (recording/{FILES}): train with SecondOrder(...) or Recorder() among the callbacks, "
        "and give trainer.log_dir."
    )
