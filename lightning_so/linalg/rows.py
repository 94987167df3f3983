"""Some rows of a batch: in place where they lie together, else copies that are put back."""

import torch
from torch import Tensor


def together(rows: list[int]) -> bool:
    """Whether rows, rising, follow each other."""
    return rows[-1] + 1 - rows[0] == len(rows)


def some(batch: Tensor, rows: list[int]) -> Tensor:
    """Rows of a batch: a view where they lie together, else a copy.

    Args:
        batch: The batch, of any shape (B, ...).
        rows: Their numbers, rising.

    Returns:
        The rows, shape (k, ...).
    """
    return batch[rows[0] : rows[-1] + 1] if together(rows) else batch[rows]


def each(numbers: list[float], like: Tensor) -> Tensor | float:
    """A number for each row, to multiply with: the number itself where all are equal, which waits for no copy."""
    return numbers[0] if len({*numbers}) == 1 else torch.tensor(numbers, dtype=like.dtype, device=like.device)


def put(batch: Tensor, rows: list[int], values: Tensor | float) -> None:
    """Write rows of a batch, or one number into all of them.

    Args:
        batch: The batch, changed in place.
        rows: Their numbers, rising.
        values: What to write.
    """
    batch[slice(rows[0], rows[-1] + 1) if together(rows) else rows] = values
