"""Data-parallel ranks that hold equal parameters and equal reduced gradients (DDP)."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_so.comm.local import Local


class Replicated(Local):
    """Exchanges over a process group of its own, so that they never mix with the gradient buckets' order.

    Making one is a collective: every rank of the default group makes it at the same point.
    """

    def __init__(self) -> None:
        """Make the process group, with the default group's backend and time-out."""
        super().__init__()
        self._group: Any = group_of()
        self.rank, self.ranks = dist.get_rank(self._group), dist.get_world_size(self._group)
        cuda = "nccl" in dist.get_backend(self._group)
        self._device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")

    def anywhere(self, flags: list[bool]) -> list[bool]:
        """See `Local.anywhere`: one small all-reduce."""
        with self._exchange():
            wire = torch.tensor(flags, dtype=torch.uint8, device=self._device)
            dist.all_reduce(wire, dist.ReduceOp.MAX, group=self._group)
            self.sent += wire.nbytes
            return wire.bool().tolist()

    def start_gather(self, mine: Tensor, sizes: list[int]) -> Callable[[], list[Tensor]]:
        """See `Local.start_gather`: one all-gather, padded to the largest rank."""
        width = max(sizes)
        if width == 0:
            return lambda: [mine[:0]] * self.ranks
        with self._exchange():
            wire = torch.zeros(width, dtype=torch.uint8, device=self._device)
            wire[: mine.numel()] = mine
            rows = list(torch.empty(self.ranks, width, dtype=torch.uint8, device=self._device).unbind(0))
            work: Any = dist.all_gather(rows, wire, group=self._group, async_op=True)
            self.sent += wire.nbytes

        def arrived() -> list[Tensor]:
            with self._exchange():
                work.wait()
                return [row[:size].to(mine.device) for row, size in zip(rows, sizes, strict=True)]

        return arrived

    def start_largest(self, number: int) -> Callable[[], int]:
        """See `Local.start_largest`: one all-reduce of 8 bytes."""
        with self._exchange():
            wire = torch.full((1,), number, dtype=torch.int64, device=self._device)
            work: Any = dist.all_reduce(wire, dist.ReduceOp.MAX, group=self._group, async_op=True)
            self.sent += wire.nbytes
            landed, event = wire, None
            if wire.is_cuda:
                # Beside the training's stream, for which the host would wait otherwise.
                with torch.cuda.stream(stream := torch.cuda.Stream()):
                    work.wait()
                    landed = torch.empty(1, dtype=torch.int64, pin_memory=True).copy_(wire, non_blocking=True)
                    event = stream.record_event()
                wire.record_stream(stream)

        def arrived() -> int:
            with self._exchange():
                work.wait() if event is None else event.synchronize()
            return int(landed)

        return arrived

    def start_reduce(self, total: Tensor, owner: int) -> Callable[[], None]:
        """See `Local.start_reduce`."""
        with self._exchange():
            wire = total.to(self._device)
            work: Any = dist.reduce(wire, owner, group=self._group, async_op=True)
            self.sent += wire.nbytes if self.rank != owner else 0

        def arrived() -> None:
            with self._exchange():
                work.wait()
                if wire is not total and self.rank == owner:
                    total.copy_(wire)

        return arrived

    def sum(self, total: Tensor) -> None:
        """See `Local.sum`: one all-reduce."""
        with self._exchange():
            wire = total.to(self._device)
            dist.all_reduce(wire, group=self._group)
            if wire is not total:
                total.copy_(wire)
            self.sent += wire.nbytes

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Count the time of the body, and say of its errors where they come from."""
        begin = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            waited = time.perf_counter() - begin
            told = (
                f"{error}\nlightning_so: rank {self.rank} of {self.ranks} was in an exchange of SecondOrder for "
                f"{waited:.1f} s. If a connection was closed or timed out, another rank has died or was later than the "
                f"process group's time-out ({patience()}, the strategy's timeout=): its own output says why. Resume "
                f"from the last checkpoint."
            )
            error.args = told, *error.args[1:]
            raise
        finally:
            self.seconds += time.perf_counter() - begin

    def close(self) -> None:
        """See `Local.close`; once more is nothing."""
        # The last reference is given up here: else the group's threads end with whoever drops it, or with Python.
        group, self._group = self._group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)


def group_of(ranks: Iterable[int] | None = None) -> Any:
    """A new process group with the default one's backend and time-out; a collective of all ranks.

    Args:
        ranks: Who is in it; None for all.

    Returns:
        The group.
    """
    # Else torch takes the backend's default, of half an hour for gloo, whatever the user has asked for.
    return dist.new_group(None if ranks is None else list(ranks), timeout=patience())


def patience() -> timedelta | None:
    """How long exchanges of the default process group wait for a rank; None where its backend does not tell."""
    world: Any = dist.group.WORLD
    try:
        return world._get_backend(world._device_types[0]).options._timeout
    except (AttributeError, RuntimeError):  # not public, and not every backend has options
        return None
