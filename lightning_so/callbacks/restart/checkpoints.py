"""Checkpoints in a folder: written whole or not at all, read only if they are as they were written."""

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lightning_so.callbacks.restart import archive, manifest
from lightning_so.errors import StateError

#: Names of whole checkpoints, of those that are being written, and of those that were found damaged.
NAME, PARTIAL, DAMAGED = "step={}.ckpt", ".step={}.partial", ".damaged"
WHOLE = re.compile(r"step=(\d+)\.ckpt")
#: How the next move begins, in what is said of a damaged one.
MOVE = " Move it away"
#: Endings of what torch.save writes: folders also hold files of other kinds.
ARCHIVES = (".pt", ".ckpt", ".pth")


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
        remove(path)
    for path in folder.glob("step=*.ckpt" + manifest.BESIDE):
        if not path.with_suffix("").exists():
            path.unlink()


def remove(path: Path) -> None:
    """Remove a checkpoint, with its manifest.

    Args:
        path: A file or a folder.
    """
    if path.is_dir():
        shutil.rmtree(path)
        return
    path.unlink()
    manifest.place(path).unlink(missing_ok=True)


def flush(partial: Path) -> None:
    """Wait until what this node has written of a checkpoint would survive a power cut; the others do so too.

    Args:
        partial: The file or folder.
    """
    for each in sorted((partial, *partial.rglob("*")), key=lambda path: (path.is_dir(), path)):
        _to_disk(each)


def publish(partial: Path, path: Path, entries: Mapping[str, manifest.Entry] | None = None) -> None:
    """Give a checkpoint its name once all of it is on the disk: whoever sees the name sees all of it.

    Args:
        partial: The file or folder, beside `path`.
        path: Its name from now on.
        entries: Sizes and checksums of its files, as far as other ranks have taken them.
    """
    known = dict(entries or {})
    with ThreadPoolExecutor(1) as beside:
        # The bytes are still in memory, and the disk does not wait for the processor.
        flushed = beside.submit(flush, partial)
        for file in manifest.files(partial):
            name = manifest.inner(partial, file)
            known[name] = known.get(name) or manifest.entry(file)
        flushed.result()
    if partial.is_dir():
        _write(partial / manifest.NAME, manifest.text(known))
        _to_disk(partial)
    else:
        # Both versions, until the name is the new one's.
        _write(manifest.place(path), manifest.text(known, _before(path)))
    if path.is_dir():
        # A folder takes no other's place: this one was written at the same step before a restart.
        os.replace(path, path.parent / PARTIAL.format(f"{step_of(path)}-before"))
    os.replace(partial, path)
    _to_disk(path.parent)


def check(path: Path, *, contents: bool = True, share: tuple[int, int] = (0, 1)) -> None:
    """See whether a checkpoint is as it was written.

    Args:
        path: A file or a folder.
        contents: Whether to compare checksums too, for which everything is read.
        share: A rank and the number of ranks, if each reads its part of a folder's files.

    Raises:
        StateError: If it is not, with what is wrong and the next move.
    """
    if not path.exists():
        raise StateError(f"{path} does not exist. Give the path of a checkpoint, or none (ckpt_path=None).")
    try:
        wrong = _wrong(path, share if contents else None)
    except (OSError, ValueError) as error:
        wrong = str(error)
    if wrong:
        raise StateError(f"{path} is not whole: {wrong}.{_move(path)}")


def aside(path: Path) -> Path:
    """Take a damaged checkpoint's name away, so that it is read no more; it is kept.

    Args:
        path: A file or a folder.

    Returns:
        Its name from now on.
    """
    to = path.with_name(path.name + DAMAGED)
    if to.is_dir():
        shutil.rmtree(to)
    beside = manifest.place(path)
    if beside.exists() and not path.is_dir():
        os.replace(beside, to.with_name(to.name + manifest.BESIDE))
    os.replace(path, to)
    return to


def _wrong(path: Path, share: tuple[int, int] | None) -> str | None:
    """What is wrong with a checkpoint, in words; checksums are compared for a share of the files."""
    known = manifest.read(path)
    if known is not None:
        return manifest.differing(path, known, share)
    rank, ranks = share or (0, 1)
    for file in manifest.files(path)[rank::ranks]:
        if (file == path or file.suffix in ARCHIVES) and (wrong := archive.damage(file, share is not None)):
            return wrong if file == path else f"{file.relative_to(path)}: {wrong}"
    return None


def _before(path: Path) -> manifest.Manifest | None:
    """The manifest of the file that has a name already."""
    try:
        return manifest.read(path) if path.is_file() else None
    except ValueError:
        return None


def _move(path: Path) -> str:
    """The next move, once a checkpoint is found damaged."""
    whole = [other for other in listed(path.parent) if step_of(other) < step_of(path)]
    after = f" to go on from {whole[-1].name}" if whole else ""
    return f"{MOVE}{after}: mv {shlex.quote(str(path))} {shlex.quote(str(path) + DAMAGED)}"


def _write(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    partial = path.with_name(PARTIAL.format(path.name))
    partial.write_text(text)
    _to_disk(partial)
    os.replace(partial, path)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
