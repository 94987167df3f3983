"""Checkpoints in a folder: written whole or not at all, read only if they are whole."""

import json
import os
import re
import shutil
import zipfile
from pathlib import Path

from lightning_so.errors import StateError

#: Names of whole checkpoints, and of those that are being written.
NAME, PARTIAL = "step={}.ckpt", ".step={}.partial"
WHOLE = re.compile(r"step=(\d+)\.ckpt")
#: In a checkpoint that is a folder: the sizes of its files.
SIZES = "sizes.json"


def step_of(path: Path) -> int:
    """The step of a checkpoint, by its name; -1 if it has another."""
    match = WHOLE.fullmatch(path.name)
    return int(match[1]) if match else -1


def listed(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, in the order of their steps."""
    return sorted((path for path in folder.glob("step=*.ckpt") if step_of(path) >= 0), key=step_of)


def tidy(folder: Path, keep: int) -> None:
    """Remove what a save that was interrupted has left, and all but the newest checkpoints.

    Args:
        folder: The folder.
        keep: How many stay.
    """
    for path in (*folder.glob(PARTIAL.format("*")), *listed(folder)[:-keep]):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def flush(partial: Path) -> None:
    """Wait until what this node has written of a checkpoint would survive a power cut; the others do so too.

    Args:
        partial: The file or folder.
    """
    folders = sorted(path for path in (partial, *partial.rglob("*")) if path.is_dir())
    for each in (*_files(partial), *folders):
        _to_disk(each)


def publish(partial: Path, path: Path) -> None:
    """Give a checkpoint its name once all of it is on the disk: whoever sees the name sees all of it.

    Args:
        partial: The file or folder, beside `path`.
        path: Its name from now on.
    """
    if partial.is_dir():
        sizes = {str(file.relative_to(partial)): file.stat().st_size for file in _files(partial)}
        (partial / SIZES).write_text(json.dumps(sizes))
    flush(partial)
    if path.is_dir():
        # A folder takes no other's place: this one was written at the same step before a restart.
        os.replace(path, path.parent / PARTIAL.format(f"{step_of(path)}-before"))
    os.replace(partial, path)
    _to_disk(path.parent)


def check(path: Path, *, contents: bool = True) -> None:
    """See whether all of a checkpoint is there.

    torch.load does not look at the checksums that torch.save has written: a flipped bit would become a weight.

    Args:
        path: A file or a folder.
        contents: Whether to compare checksums too, for which everything is read.

    Raises:
        StateError: If it cannot be read, with what is wrong.
    """
    if not path.exists():
        raise StateError(f"{path} does not exist. Give the path of a checkpoint, or none (ckpt_path=None).")
    if path.is_dir() and (path / SIZES).exists():
        for name, size in json.loads((path / SIZES).read_text()).items():
            found = (path / name).stat().st_size if (path / name).exists() else None
            if found != size:
                raise StateError(f"{path / name} has {found} bytes, {size} were written.{_move(path)}")
    for file in _files(path):
        # Folders also hold files of other kinds.
        archive = file == path or file.suffix in (".pt", ".ckpt", ".pth")
        if archive and (wrong := _damage(file, contents)):
            raise StateError(f"{file} is not whole: {wrong}.{_move(path)}")


def _damage(file: Path, contents: bool) -> str | None:
    """What is wrong with a file that torch.save has written."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip() if contents else None
    except (OSError, zipfile.BadZipFile) as error:
        return f"{error}, {file.stat().st_size} bytes"
    return f"the checksum of {damaged} is wrong" if damaged else None


def _move(path: Path) -> str:
    """The next move, once a checkpoint is found damaged."""
    whole = [other for other in listed(path.parent) if step_of(other) < step_of(path)]
    after = f" to go on from {whole[-1].name}" if whole else ""
    return f" Move it away{after}: mv '{path}' '{path}.damaged'"


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
