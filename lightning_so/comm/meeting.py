"""A first meeting of the processes of a launch, apart from the one that a training will have."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from lightning_so.comm.local import Local
from lightning_so.comm.replicated import Replicated


@contextmanager
def meeting(address: str, port: int, rank: int, ranks: int, *, backend: str, patience: float) -> Iterator[Local]:
    """Bring all ranks together, and part again so that the same address can be used.

    Args:
        address: The host of rank 0.
        port: The port there.
        rank: This process.
        ranks: How many there are.
        backend: "gloo" or "nccl".
        patience: Seconds to wait for the others.

    Yields:
        How they talk.
    """
    if ranks == 1:
        yield Local()
        return
    # torchrun listens there itself, for all of its restarts: what is agreed on goes under a name of its own.
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    name = f"lightning_so.meeting.{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    wait = timedelta(seconds=patience)
    store = dist.TCPStore(address, port, ranks, is_master=rank == 0 and not agents, timeout=wait)
    dist.init_process_group(backend, store=dist.PrefixStore(name, store), rank=rank, world_size=ranks, timeout=wait)
    try:
        comm = Replicated()
        yield comm
        # Whoever goes on at once must not find the store of this meeting.
        comm.anywhere([False])
        comm.close()
    finally:
        dist.destroy_process_group()


def available(backend: str) -> bool:
    """Whether torch was built with a backend, "gloo" or "nccl"."""
    return dist.is_available() and dist.is_backend_available(backend)
