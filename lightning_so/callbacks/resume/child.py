"""Every rank of a run in a process of its own: python -m lightning_so.callbacks.resume.child FOLDER."""

import pickle
import sys
from pathlib import Path

from lightning_so.callbacks.resume.launch import ERROR, REQUEST
from lightning_so.callbacks.resume.phase import perform


def main(folder: Path) -> None:
    """Train; leave what went wrong where the one who waits looks for it."""
    try:
        perform(pickle.loads((folder / REQUEST).read_bytes()))
    except Exception as error:
        (folder / ERROR).write_text(f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
