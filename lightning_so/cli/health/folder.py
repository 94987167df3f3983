"""Where checkpoints will be."""

import os
import shlex
import shutil
from pathlib import Path

from lightning_so.callbacks.restart import checkpoints
from lightning_so.cli.health.finding import Finding, bad, good, odd
from lightning_so.errors import StateError

#: Bytes free below which it is said: a checkpoint of a small model, three times.
LITTLE = 1 << 30


def check(folder: Path | None) -> list[Finding]:
    """Whether a checkpoint could be written there, and the newest one be read.

    Args:
        folder: The folder, as this process sees it; None for none.

    Returns:
        Findings.
    """
    if folder is None:
        return []
    quoted = shlex.quote(str(folder))
    if not folder.is_dir():
        return [bad("folder", f"{folder} is not there, or no folder, on this host", f"mkdir -p {quoted}")]
    trial = folder / f".doctor-{os.uname().nodename}-{os.getpid()}"
    try:
        partial = trial.with_suffix(".partial")
        partial.write_bytes(b"\0" * 4096)
        checkpoints.publish(partial, trial)
        checkpoints.remove(trial)
    except OSError as error:
        return [bad("folder", f"nothing can be written to {folder}: {error}", f"df -h {quoted}; ls -ld {quoted}")]
    free = shutil.disk_usage(folder).free
    found = [good("folder", f"{folder}, {free / 2**30:.1f} GiB free")]
    if free < LITTLE:
        found = [odd("folder", f"{folder}, only {free / 2**30:.2f} GiB free", "make room, or give another folder")]
    for path in checkpoints.listed(folder)[-1:]:
        found += checkpoint(path)
    return found


def checkpoint(path: Path | None) -> list[Finding]:
    """Whether a checkpoint is whole.

    Args:
        path: A file or folder; None for none.

    Returns:
        Findings.
    """
    if path is None:
        return []
    try:
        checkpoints.check(path)
    except StateError as error:
        seen, _, move = str(error).partition(". ")
        return [bad("checkpoint", seen, move)]
    return [good("checkpoint", f"{path} is whole")]
