"""The manifest of a checkpoint: size and checksum of every file, so that what is read is what was written.

A file's lies beside it, `step=8.ckpt.json`, a folder's in it, `manifest.json`. Checksums are CRC-32 of the file's
bytes: against damage, not against forgery, and several times as fast as SHA-256, which takes as long as torch.save.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Of one file: its bytes and their checksum.
Entry = dict[str, Any]
#: By its name in the folder ("" for a checkpoint that is one file): the versions of it that may be there. There are
#: two while one takes the other's place at the same step.
Manifest = dict[str, list[Entry]]
#: Bytes that are read at once.
BLOCK = 1 << 22
#: As many as restarts at the same step could leave behind.
VERSIONS = 8
#: In a checkpoint that is a folder.
NAME = "manifest.json"
#: What is added to the name of one that is a file.
BESIDE = ".json"


def place(checkpoint: Path) -> Path:
    """Where the manifest of a checkpoint is."""
    return checkpoint / NAME if checkpoint.is_dir() else checkpoint.with_name(checkpoint.name + BESIDE)


def files(checkpoint: Path) -> list[Path]:
    """What a checkpoint consists of, in the order of names; without the manifest."""
    if not checkpoint.is_dir():
        return [checkpoint]
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / NAME)


def inner(checkpoint: Path, file: Path) -> str:
    """The name that a file has in the manifest of its checkpoint."""
    return "" if file == checkpoint else file.relative_to(checkpoint).as_posix()


def entry(file: Path) -> Entry:
    """Size and checksum of a file, for which all of it is read."""
    block, length, checksum = memoryview(bytearray(BLOCK)), 0, 0
    with file.open("rb", buffering=0) as content:
        while count := content.readinto(block):
            length, checksum = length + count, zlib.crc32(block[:count], checksum)
    return {"bytes": length, "crc32": f"{checksum:08x}"}


def entries(checkpoint: Path, rank: int = 0, ranks: int = 1) -> dict[str, Entry]:
    """Sizes and checksums of one rank's share of the files.

    Args:
        checkpoint: A file or folder.
        rank: Whose share.
        ranks: Among how many the files are shared.

    Returns:
        By name in the manifest.
    """
    return {inner(checkpoint, file): entry(file) for file in files(checkpoint)[rank::ranks]}


def read(checkpoint: Path) -> Manifest | None:
    """The manifest of a checkpoint.

    Args:
        checkpoint: A file or folder.

    Returns:
        None if it has none: then it was not written by `Restartable`.

    Raises:
        ValueError: If it cannot be understood.
    """
    path = place(checkpoint)
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
        return {str(name): [{"bytes": e["bytes"], "crc32": e["crc32"]} for e in each] for name, each in found.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its manifest {path.name} cannot be read ({error})") from error


def text(found: Mapping[str, Entry], before: Manifest | None = None) -> str:
    """A manifest as it stands in its file.

    Args:
        found: Sizes and checksums of the files.
        before: The manifest of a checkpoint that still has this one's name, and may go on having it after a crash.

    Returns:
        JSON.
    """
    earlier = before or {}
    return json.dumps({name: [each, *earlier.get(name, [])][:VERSIONS] for name, each in found.items()})


def differing(checkpoint: Path, manifest: Manifest, share: tuple[int, int] | None) -> str | None:
    """What is not as it was written.

    Args:
        checkpoint: A file or folder.
        manifest: Its manifest.
        share: A rank and the number of ranks, if checksums of this rank's share of the files are compared too; None to
            compare sizes alone.

    Returns:
        In words; None for nothing.
    """
    names = sorted(manifest)
    for name in names:
        file = checkpoint / name if name else checkpoint
        size, written = file.stat().st_size if file.exists() else None, [each["bytes"] for each in manifest[name]]
        if size not in written:
            return f"{name or 'it'} has {size} bytes, {_words(written)} were written"
    for name in names[share[0] :: share[1]] if share else ():
        if entry(checkpoint / name if name else checkpoint) not in manifest[name]:
            return f"the checksum of {name or 'its bytes'} is wrong"
    return None


def _words(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, dict.fromkeys(numbers)))
