"""Vectors over parameters: flat, this rank's numbers alone; sums over ranks, and probes that no rank count changes.

Legend: n numbers of this rank, N of all ranks, k and l vectors.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: Constants of the mixing function (splitmix64: Steele, Lea and Flood 2014), as signed 64-bit integers.
GOLDEN, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


@dataclass(frozen=True)
class Piece:
    """This rank's numbers of one parameter: a range of its row-major ones.

    Attributes:
        name: The parameter.
        first: The first of them.
        count: How many.
        whole: How many the parameter has on all ranks.
        counted: Whether this rank counts them in sums: of ranks that have the same numbers, one does.
        run: How many numbers in a row belong together: the positions of a convolution's kernel.
        cut: Whether some rank's range begins or ends inside of a run; the same on every rank.
    """

    name: str
    first: int
    count: int
    whole: int
    counted: bool = True
    run: int = 1
    cut: bool = False


def alone(total: Tensor) -> Tensor:
    """Sums over one process."""
    return total


@dataclass(frozen=True)
class Space:
    """Vectors of shape (n,): the pieces of the parameters one after the other.

    Attributes:
        pieces: What the numbers are.
        dtype: Of the vectors.
        device: Of the vectors.
        total: Gives the sum over ranks of numbers to which each has given its part.
    """

    pieces: tuple[Piece, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    total: Callable[[Tensor], Tensor] = alone

    @property
    def dimension(self) -> int:
        """N."""
        return sum(piece.whole for piece in self.pieces)

    def zeros(self, *rows: int) -> Tensor:
        """Vectors of zeros, shape (*rows, n)."""
        return torch.zeros(*rows, sum(piece.count for piece in self.pieces), dtype=self.dtype, device=self.device)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector, one a piece."""
        return list(vector.split([piece.count for piece in self.pieces]))

    def block(self, numbers: Sequence[int]) -> "Space":
        """The space of some of the pieces."""
        return replace(self, pieces=tuple(self.pieces[number] for number in numbers))

    def part(self, vector: Tensor, numbers: Sequence[int]) -> Tensor:
        """What a vector has in the space of some of the pieces."""
        parts = self.split(vector)
        return torch.cat([parts[number] for number in numbers])

    def averaged(self, vector: Tensor) -> Tensor:
        """Have every number of a run be the mean of the run, in place; see `Piece.run`, of which none is cut.

        Args:
            vector: Shape (n,).

        Returns:
            The same vector.
        """
        for piece, part in zip(self.pieces, self.split(vector), strict=True):
            if piece.run > 1:
                runs = part.view(-1, piece.run)
                runs.copy_(runs.mean(1, keepdim=True).expand_as(runs))
        return vector

    def gram(self, X: Tensor, Y: Tensor) -> Tensor:
        """Inner products `<x_i, y_j>`: local sums in float64, and one sum over ranks of k x l numbers.

        Args:
            X: Vectors, shape (k, n).
            Y: Vectors, shape (l, n).

        Returns:
            The products, shape (k, l), float64, equal on every rank.
        """
        found = torch.zeros(len(X), len(Y), dtype=torch.float64, device=self.device)
        sizes = [piece.count for piece in self.pieces]
        for piece, x, y in zip(self.pieces, X.split(sizes, 1), Y.split(sizes, 1), strict=True):
            if piece.counted:
                found += x.double() @ y.double().mT
        return self.total(found)

    def along(self, V: Tensor, X: Tensor) -> Tensor:
        """`<v_i, x_j>` as `gram` gives them, but summed in the dtype of the vectors: one pass over them, no copies.

        Args:
            V: Vectors, shape (k, n).
            X: Vectors, shape (l, n).

        Returns:
            The products, shape (k, l), float64, equal on every rank.
        """
        if not all(piece.counted for piece in self.pieces):
            return self.gram(V, X)
        return self.total((V @ X.mT).double())

    def dot(self, x: Tensor, y: Tensor) -> float:
        """`<x, y>`; a host read."""
        return float(self.gram(x[None], y[None]))

    def norm(self, x: Tensor) -> float:
        """`|x|`, summed as `along` does; a host read."""
        return math.sqrt(float(self.along(x[None], x[None])))

    def rademacher(self, seed: int, stream: int = 0) -> Tensor:
        """A vector of independent signs; each number depends on the seed, its parameter's name and its place alone.

        Args:
            seed: Of the run.
            stream: Which vector.

        Returns:
            The vector, of -1 and 1.
        """
        bits = self._bits(seed, stream)
        return torch.where(bits < 0, -1.0, 1.0).to(self.dtype)

    def normal(self, seed: int, stream: int = 0) -> Tensor:
        """A vector of independent standard normal numbers (Box and Muller 1958), as `rademacher` otherwise.

        Args:
            seed: Of the run.
            stream: Which vector.

        Returns:
            The vector.
        """
        one, other = (_uniform(self._bits(seed, 2 * stream + half)) for half in (0, 1))
        return ((-2 * one.log()).sqrt() * (2 * math.pi * other).cos()).to(self.dtype)

    def _bits(self, seed: int, stream: int) -> Tensor:
        """64 random bits a number: a counter-based generator."""
        parts = [torch.empty(0, dtype=torch.int64, device=self.device)]
        for piece in self.pieces:
            name = f"{seed}/{stream}/{piece.name}".encode()
            key = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)
            counter = torch.arange(piece.first, piece.first + piece.count, dtype=torch.int64, device=self.device)
            parts.append(_mixed(counter * GOLDEN + key))
        return torch.cat(parts)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: torch's keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _uniform(bits: Tensor) -> Tensor:
    """Numbers in (0, 1] from their upper 53 bits."""
    return (_shifted(bits, 11).double() + 1) / 2**53
