"""What ranks tell each other of a folder: whether it is the same one, and whatever else is said in a few words."""

import json
import secrets
from pathlib import Path
from typing import Any

import torch

from lightning_so.comm import Local, replicated_tensors


def exchanged(comm: Local, number: int) -> list[int]:
    """A number of each rank, on all ranks."""
    return [int(of_rank) for (of_rank,) in replicated_tensors(comm, [[torch.tensor(int(number))]] * comm.ranks)]


def told(comm: Local, mine: Any) -> list[Any]:
    """What each rank says, on all ranks.

    Args:
        comm: How ranks talk.
        mine: This rank's, as JSON has it.

    Returns:
        By rank.
    """
    wire = torch.frombuffer(bytearray(json.dumps(mine).encode()), dtype=torch.uint8)
    return [json.loads(bytes(part.tolist())) for part in comm.gather(wire, exchanged(comm, wire.numel()))]


def blind(comm: Local, folder: Path) -> list[int]:
    """The ranks that do not see what rank 0 writes.

    Args:
        comm: How ranks talk.
        folder: The folder, which rank 0 need not have either.

    Returns:
        Their numbers, the same on every rank.
    """
    # Of one name that nobody has looked for before: network file systems remember what was not there.
    trial = folder / f".shared-{exchanged(comm, secrets.randbits(62))[0]}"
    if comm.rank == 0 and folder.is_dir():
        trial.touch()
    comm.anywhere([False])
    found = [rank for rank, sees in enumerate(exchanged(comm, trial.exists())) if not sees]
    if comm.rank == 0:
        trial.unlink(missing_ok=True)
    return found
