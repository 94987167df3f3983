"""Short names for what a run saw and had: the rows of its batches, its weights, its random state."""

import hashlib
import pickle
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

PLAIN = (str, bytes, int, float, bool, type(None))
#: How deep batches are looked into; what lies deeper counts by its type.
DEPTH = 8


def digest(*parts: bytes) -> str:
    """A short name for some bytes.

    Args:
        parts: The bytes; where they are cut matters.

    Returns:
        Sixteen hexadecimal digits.

    Example:
        >>> digest(b"a", b"b") == digest(b"ab")
        False
    """
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


def raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor: -0 is not 0 here, and NaN is itself."""
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def weights(state: Mapping[str, Any]) -> dict[str, str]:
    """A name for the value of every tensor of a state dict."""
    return {name: digest(raw(value)) for name, value in state.items() if isinstance(value, Tensor)}


def rows(batch: Any) -> list[str]:
    """Names of the samples in a batch, so that batches can be compared over numbers of ranks.

    Args:
        batch: Tensors and plain values in any nest of mappings, sequences and objects.

    Returns:
        One name a row of the first dimension, where all that is in the batch agrees on it; else one for all.

    Example:
        >>> x = torch.arange(6).view(3, 2)
        >>> rows({"x": x})[1:] == rows({"x": x[1:]})
        True
    """
    leaves = list(_leaves(batch, "", DEPTH))
    counts = {len(value) for _, value in leaves if isinstance(value, list)}
    if len(counts) != 1:
        parts = (value if isinstance(value, bytes) else b"".join(value) for _, value in leaves)
        return [digest(*(path.encode() for path, _ in leaves), *parts)]
    return [
        digest(*(path.encode() + (value if isinstance(value, bytes) else value[row]) for path, value in leaves))
        for row in range(counts.pop())
    ]


def _leaves(value: Any, path: str, depth: int) -> Iterator[tuple[str, bytes | list[bytes]]]:
    """Paths with one entry a row, or with the bytes of what has no rows."""
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and value.dtype.kind in "biufc":
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        head, data = f"{value.dtype}{tuple(value.shape[1:])}".encode(), raw(value)
        count = len(value) if value.dim() else 0
        size = len(data) // max(1, count)
        yield path, [head + data[row * size : (row + 1) * size] for row in range(count)] if count else head + data
    elif isinstance(value, PLAIN):
        yield path, repr(value).encode()
    elif isinstance(value, (list, tuple)) and all(isinstance(item, PLAIN) for item in value):
        yield path, [repr(item).encode() for item in value] or b""
    elif depth and (items := _items(value)) is not None:
        for key, item in items:
            yield from _leaves(item, f"{path}/{key}", depth - 1)
    else:
        yield path, type(value).__qualname__.encode()


def _items(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    return list(vars(value).items()) if hasattr(value, "__dict__") else None


def random_state() -> dict[str, str]:
    """A name for the state of every random generator that a step may draw from."""
    states = {"torch": digest(raw(torch.get_rng_state())), "random": digest(repr(random.getstate()).encode())}
    if (numpy := sys.modules.get("numpy")) is not None:
        states["numpy"] = digest(pickle.dumps(numpy.random.get_state()))
    if torch.cuda.is_initialized():
        states["cuda"] = digest(raw(torch.cuda.get_rng_state()))
    return states
