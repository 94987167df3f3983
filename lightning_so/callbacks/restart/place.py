"""Where a training's folder may be."""

import re
from os import PathLike
from pathlib import Path

from lightning_so.errors import ConfigError

#: "s3://bucket/run", and what `Path` makes of it. One letter and a colon would be a drive.
REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local(owner: str, folder: str | PathLike[str]) -> Path:
    """The absolute path of a folder on a disk.

    Checkpoints are flushed and renamed there, and a lock is held, which object stores and the like do not have.

    Args:
        owner: Whose argument `folder` it is, for the message.
        folder: What was given.

    Returns:
        The path.

    Raises:
        ConfigError: If it is an address of something else, or a name that no checkpoint can be written under.
    """
    text = str(folder)
    if REMOTE.match(text):
        raise ConfigError(
            f"{owner}(folder={text!r}): this is an address, and a folder on a disk is needed, which all nodes share: "
            "checkpoints are renamed there once they are whole. Give a path (an absolute one if a folder has such a "
            "name), and copy from there what is to be kept elsewhere."
        )
    if "::" in text or not text.isprintable():
        raise ConfigError(
            f"{owner}(folder={text!r}): Lightning takes '::' for an address within another, and scripts end a line "
            "at a line break. Give a folder whose name has neither, nor other signs that cannot be printed."
        )
    return Path(folder).absolute()
