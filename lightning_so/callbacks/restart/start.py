"""What all ranks settle when a fit begins: whose the folder is, that it is one, and that pieces are as written."""

from pathlib import Path

from lightning_so.callbacks.restart import checkpoints
from lightning_so.callbacks.restart.lock import Lock
from lightning_so.callbacks.restart.shared import blind, told
from lightning_so.comm import Local
from lightning_so.errors import ConfigError, StateError


def hold(folder: Path, comm: Local) -> Lock | None:
    """Take the folder for this training; a collective.

    Args:
        folder: The folder, which rank 0 makes.
        comm: How ranks talk.

    Returns:
        Rank 0's lock.

    Raises:
        ConfigError: If another training has it, or nothing can be written there; on all ranks.
    """
    lock = Lock(folder) if comm.rank == 0 else None
    wrong = None if lock is None else _taken(lock, folder)
    if wrong := next(filter(None, told(comm, wrong)), None):
        raise ConfigError(f"Restartable(folder={str(folder)!r}): {wrong}")
    return lock


def _taken(lock: Lock, folder: Path) -> str | None:
    """Take the folder on rank 0; why it is not to be had, in words."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holder, over = lock.take()
    except OSError as error:
        return f"nothing can be written there ({error}). Give a folder of yours on a disk that has room."
    if holder is not None:
        return (
            f"the folder is held by {holder}. Each would go on from the other's weights: give this training another "
            "folder, or end that one first."
        )
    if over is not None:
        print(f"Restartable: {folder} was held by {over}; this training takes it over.", flush=True)
    return None


def see_folder(folder: Path, comm: Local) -> None:
    """Refuse a folder that is not the same one on all ranks; a collective.

    Args:
        folder: The folder.
        comm: How ranks talk.

    Raises:
        ConfigError: If some do not see what rank 0 writes, on all ranks.
    """
    ranks = blind(comm, folder)
    if ranks:
        raise ConfigError(
            f"Restartable(folder={str(folder)!r}): ranks {ranks} do not see what rank 0 writes there. Give a "
            f"folder on a disk that all nodes share."
        )


def see_pieces(path: Path | None, comm: Local) -> None:
    """Compare the checksums of a folder of pieces, each rank some; a collective.

    A damaged one loses its name, so that the next start goes on from the one before.

    Args:
        path: The checkpoint that the training goes on from; a file has been read whole before.
        comm: How ranks talk.

    Raises:
        StateError: If a piece is not as it was written, on all ranks.
    """
    wrong = None
    if path is not None and path.is_dir():
        try:
            checkpoints.check(path, share=(comm.rank, comm.ranks))
        except StateError as error:
            wrong = str(error)
    found = next(filter(None, told(comm, wrong)), None)
    if found is None or path is None:
        return
    if comm.rank == 0:
        checkpoints.aside(path)
    seen = found.partition(checkpoints.MOVE)[0]
    raise StateError(
        f"{seen} It is {path.name}{checkpoints.DAMAGED} from now on: start again, which goes on from the one before."
    )
