"""Work space for batches of matrices, and their views as parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_so.contract.block import StackSpec


class Scratch:
    """Work space that all stacks of a device share, so that no step allocates for gathering."""

    def __init__(self) -> None:
        """Start empty; grows to the largest stack."""
        self._room: dict[tuple[torch.device, torch.dtype, int], Tensor] = {}

    def batch(self, stack: StackSpec, count: int, slot: int) -> Tensor:
        """Uninitialised space for `count` matrices of a stack, shape (count, rows, cols).

        Args:
            stack: The stack whose shape and compute dtype apply.
            count: How many.
            slot: Which work space; two batches in the same slot overwrite each other.

        Returns:
            The batch.
        """
        rows, cols = stack.shape
        return self.flat(stack, count * rows * cols, slot).view(count, rows, cols)

    def flat(self, stack: StackSpec, size: int, slot: int) -> Tensor:
        """Uninitialised space for `size` numbers; see `batch`."""
        key = (stack.device, stack.dtype, slot)
        room = self._room.get(key)
        if room is None or room.numel() < size:
            room = self._room[key] = torch.empty(size, dtype=stack.dtype, device=stack.device)
        return room[:size]

    def clear(self) -> None:
        """Give all of it back."""
        self._room.clear()

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(room.nbytes for room in self._room.values())


def views(batch: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The matrices of a contiguous batch as whole parameters.

    Args:
        batch: The matrices, shape (k, rows, cols).
        shapes: Of one block's parameters: the weight, and the bias if it is the last column.

    Returns:
        Views, each weight before its bias.
    """
    # One call for all of them: a view for each is most of what a step takes of the host.
    if len(shapes) == 1:
        return list(batch.view(len(batch), *shapes[0]).unbind(0))
    weights, biases = batch[:, :, :-1].view(len(batch), *shapes[0]).unbind(0), batch[:, :, -1].unbind(0)
    return [part for pair in zip(weights, biases, strict=True) for part in pair]
