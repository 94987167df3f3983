"""The whole parameter vector: this rank's numbers of all parameters, and sums over all ranks' numbers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_so.comm import Access, Forward, Local, Pieces, Sent, Sharded, access_of, ambient, forward_of
from lightning_so.comm.wrappers import clean
from lightning_so.linalg.vectors import Piece, Space


def space_of(named: Iterable[tuple[str, Tensor]], access: Access, comm: Local) -> Space:
    """The space of some parameters; a collective where ranks hold pieces.

    Args:
        named: Names and parameters, the same on every rank.
        access: Where their numbers are.
        comm: How ranks talk.

    Returns:
        The space, in float32, or float64 where all parameters are; kernels of convolutions are runs of it.
    """
    found, pieces = list(named), []
    for name, param in found:
        (first, last), shape = access.span(param), access.shape(param)
        kernel = max(shape[2:].numel(), 1) if len(shape) > 3 else 1
        pieces.append(Piece(name, first, last - first, shape.numel(), run=kernel))
    weights = [access.weight(param) for _, param in found]
    double = bool(weights) and all(weight.dtype is torch.float64 for weight in weights)
    dtype, device = torch.float64 if double else torch.float32, weights[0].device if weights else "cpu"
    if not access.sharded:  # What every rank has is no sum.
        return Space(tuple(pieces), dtype=dtype, device=device)
    assert isinstance(comm, Sharded)
    spans = comm.spans([(piece.first, piece.first + piece.count) for piece in pieces])
    # Of ranks that have the same numbers, one counts them.
    counted = (
        replace(
            piece,
            counted=Pieces(of, 0).gives(comm.rank) > 0,
            cut=any(end % piece.run for span in of for end in span),
        )
        for piece, of in zip(pieces, spans, strict=True)
    )

    def total(numbers: Tensor) -> Tensor:
        comm.sum(numbers)
        return numbers

    return Space(tuple(counted), dtype=dtype, device=device, total=total)


@dataclass(frozen=True)
class ParameterVector:
    """Parameters as one vector.

    Attributes:
        params: The parameters.
        access: Where their numbers are.
        forward: How the forward pass gets at them.
        comm: How ranks talk.
        space: What vectors are.
    """

    params: list[Tensor]
    access: Access
    forward: Forward
    comm: Local
    space: Space

    @classmethod
    def of(cls, named: Iterable[tuple[str, Tensor]], model: nn.Module, engine: Any = None) -> "ParameterVector":
        """The vector of some parameters of a model: a collective on several ranks.

        Args:
            named: Names and parameters; those that are not trained are left out.
            model: The model as it is wrapped.
            engine: DeepSpeed's engine, where there is one.

        Returns:
            The vector.
        """
        found = [(clean(name), param) for name, param in named if param.requires_grad]
        params = [param for _, param in found]
        access = access_of(params, model, engine)
        comm = ambient(sharded=access.sharded)
        forward = forward_of(params, access, comm, engine)
        return cls(params, access, forward, comm, space_of(found, access, comm))

    @property
    def weights(self) -> list[Tensor]:
        """This rank's pieces of the weights that the forward pass reads, changed in place."""
        return self.forward.weights()

    @property
    def stepped(self) -> list[Tensor]:
        """This rank's pieces of the weights that the optimizer steps on, changed in place; mostly the same."""
        return [self.access.weight(param) for param in self.params]

    def gradient(self, loss: Callable[[], Sent]) -> Tensor:
        """The gradient of a loss at the weights as they are, which may stay in `.grad`; zeros where nothing is.

        Args:
            loss: Computes it, with its graph.

        Returns:
            A vector of the space.
        """
        return self.flat(self.forward.gradient(loss))

    def grads(self, out: Tensor | None = None) -> Tensor:
        """What is in `.grad`, zeros where nothing is: a vector of the space, `out` if it is given."""
        return self.flat([self.access.grad(param) for param in self.params], out)

    def values(self, out: Tensor | None = None) -> Tensor:
        """The weights as they are: a vector of the space, `out` if it is given."""
        empty = torch.empty(0, dtype=self.space.dtype, device=self.space.device)
        return torch.cat([empty, *(weight.detach().reshape(-1).to(empty) for weight in self.weights)], out=out)

    def flat(self, pieces: Sequence[Tensor | None], out: Tensor | None = None) -> Tensor:
        """One vector of this rank's pieces of something that every parameter has, zeros for None."""
        found = [torch.empty(0, dtype=self.space.dtype, device=self.space.device)]
        for numbers, piece in zip(pieces, self.space.pieces, strict=True):
            found.append(found[0].new_zeros(piece.count) if numbers is None else numbers.reshape(-1).to(found[0]))
        return torch.cat(found, out=out)
