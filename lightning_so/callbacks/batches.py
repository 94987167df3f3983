"""What is in a batch, however it is nested."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors(batch: Any) -> Iterator[Tensor]:
    """The tensors in a batch, of mappings, lists and tuples; what is in other objects is not seen."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from tensors(part)
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from tensors(part)
