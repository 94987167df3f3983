"""A recording as a file: gzip of one JSON object, written whole or not at all, read without running anything."""

import gzip
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

from lightning_so.errors import StateError

FORMAT = "lightning_so recording"
VERSION = 1
#: One file of a folder is one rank's.
NAME = "rank-{:04d}.json.gz"
#: Of a file, unpacked: a recording has some 2 MB, and a small file can unpack to more than there is memory.
MOST = 256 * 2**20
#: Smaller by a fifth than the lowest level, at twice its time; higher ones gain nothing more.
LEVEL = 6
#: What every recording has, and of which kind it is.
PARTS = {
    "run": str,
    "rank": int,
    "ranks": int,
    "written": dict,
    "begun": dict,
    "facts": dict,
    "last": dict,
    "whole": dict,
}


def write(path: Path, recording: dict[str, Any]) -> None:
    """Write a recording; a process that dies meanwhile leaves the file of before, or none.

    Args:
        path: The file; its folder is there.
        recording: Strings, numbers, booleans, None, lists and dicts of them; numbers that are not finite become null.
    """
    text = json.dumps(finite(recording), allow_nan=False, separators=(",", ":"))
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Without a time in it: the same recording is the same file.
        partial.write_bytes(gzip.compress(text.encode(), LEVEL, mtime=0))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """Read a recording.

    Args:
        path: The file.

    Returns:
        What was written.

    Raises:
        StateError: If it cannot be read, is truncated, is no recording, or one of a later version; in one line.
    """
    try:
        with gzip.open(path) as stream:
            packed = stream.read(MOST + 1)
    except (EOFError, zlib.error) as error:
        raise StateError(f"{path} is truncated or damaged ({error}): take another recording of the run.") from error
    except gzip.BadGzipFile as error:
        raise StateError(f"{path} is no recording of lightning_so ({error}): give the folder of one.") from error
    except OSError as error:
        raise StateError(f"{path} cannot be read ({error.strerror or error}).") from error
    if len(packed) > MOST:
        raise StateError(f"{path} unpacks to more than {MOST >> 20} MiB, and no recording does: give another.")
    try:
        found = json.loads(packed, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise StateError(f"{path} is no recording of lightning_so (no JSON): give the folder of one.") from error
    return _checked(path, found)


def finite(value: Any) -> Any:
    """A value of which JSON has all parts: null for numbers that are not finite.

    Args:
        value: The value, of dicts and lists and tuples.

    Returns:
        A copy.

    Example:
        >>> finite({"loss": [1.5, float("nan")]})
        {'loss': [1.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def _checked(path: Path, found: Any) -> dict[str, Any]:
    """What was read, if it is a recording that this can read; raises StateError else."""
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise StateError(f"{path} is no recording of lightning_so (no format {FORMAT!r}): give the folder of one.")
    version = found.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise StateError(f"{path} is of version {version!r}, this reads up to {VERSION}: update lightning_so.")
    for name, kind in PARTS.items():
        if not isinstance(found.get(name), kind):
            raise StateError(f"{path} is no whole recording ({name!r} is missing): take another recording of the run.")
    return found


def _refused(name: str) -> None:
    """Numbers that are not finite are no JSON."""
    raise ValueError(name)
