"""One process: what communication is when there is nobody to talk to, and the interface of all its forms."""

from collections.abc import Callable

import torch
from torch import Tensor


class Local:
    """The trivial communicator; the others have the same members.

    Attributes:
        rank: This process.
        ranks: World size.
        sent: Bytes that this rank has sent, padding included.
        seconds: Host seconds spent in exchanges, waiting for the others included.
    """

    def __init__(self) -> None:
        """Nothing to set up."""
        self.rank, self.ranks, self.sent, self.seconds = 0, 1, 0, 0.0

    def anywhere(self, flags: list[bool]) -> list[bool]:
        """Whether each flag is set on any rank; every rank gives equally many."""
        return flags

    def gather(self, mine: Tensor, sizes: list[int]) -> list[Tensor]:
        """Every rank's bytes, on every rank.

        Args:
            mine: This rank's bytes, uint8, shape (sizes[rank],).
            sizes: How many bytes each rank gives; known to all without communication.

        Returns:
            One tensor a rank, shapes (sizes[r],).
        """
        return self.start_gather(mine, sizes)()

    def start_gather(self, mine: Tensor, sizes: list[int]) -> Callable[[], list[Tensor]]:
        """Start a `gather`, and go on while it travels.

        Args:
            mine: As of `gather`; not changed until it has arrived.
            sizes: As of `gather`.

        Returns:
            Waits, and gives what `gather` gives; called once.
        """
        return lambda: [mine]

    def start_largest(self, number: int) -> Callable[[], int]:
        """Start to find the largest of the ranks' numbers, and go on while they travel; the host waits for no kernel.

        Args:
            number: This rank's, not negative.

        Returns:
            Waits, and gives the largest; called once.
        """
        return lambda: number

    def start_reduce(self, total: Tensor, owner: int) -> Callable[[], None]:
        """Start to sum a tensor over ranks in place at its owner, and go on while it travels; elsewhere it is spent.

        Args:
            total: This rank's part, not touched until the sum is there; equal shape and dtype everywhere.
            owner: The rank that gets the sum.

        Returns:
            Waits; called once.
        """
        return lambda: None

    def sum(self, total: Tensor) -> None:
        """Sum a tensor over ranks in place, everywhere.

        Args:
            total: This rank's part; equal shape and dtype everywhere.
        """

    def close(self) -> None:
        """Give back what was set up; the communicator is not used afterwards."""


def replicated_tensors(
    comm: Local, tensors: list[list[Tensor]], place: str | torch.device = "cpu"
) -> list[list[Tensor]]:
    """Copies on every rank of what each has: one padded all-gather.

    Args:
        comm: How ranks talk.
        tensors: By rank, what it has; of the others, tensors of the same shapes and dtypes.
        place: Where the copies are to be.

    Returns:
        By rank, copies.
    """
    sizes = [sum(tensor.nbytes for tensor in of_rank) for of_rank in tensors]
    own = [tensor.contiguous().flatten().view(torch.uint8).to(place) for tensor in tensors[comm.rank]]
    wires = comm.gather(torch.cat([torch.empty(0, dtype=torch.uint8, device=place), *own]), sizes)
    found = []
    for of_rank, wire in zip(tensors, wires, strict=True):
        parts = wire.split([tensor.nbytes for tensor in of_rank])
        found.append([p.clone().view(t.dtype).view(t.shape) for p, t in zip(parts, of_rank, strict=True)])
    return found
