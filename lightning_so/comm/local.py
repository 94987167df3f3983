"""One process: what communication is when there is nobody to talk to, and the interface of all its forms."""

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
        return [mine]

    def reduce(self, total: Tensor, owner: int) -> None:
        """Sum a tensor over ranks in place at its owner; elsewhere it is spent.

        Args:
            total: This rank's part; equal shape and dtype everywhere.
            owner: The rank that gets the sum.
        """

    def sum(self, total: Tensor) -> None:
        """Sum a tensor over ranks in place, everywhere.

        Args:
            total: This rank's part; equal shape and dtype everywhere.
        """

    def close(self) -> None:
        """Give back what was set up; the communicator is not used afterwards."""
