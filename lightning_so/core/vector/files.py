"""The state of a method on the whole parameter vector in files: whole tensors by parameter, for any number of ranks."""

from typing import Any

import torch
from torch import Tensor

from lightning_so.contract.vector_method import VectorMethod, VectorState
from lightning_so.core.checkpoint.header import check_header
from lightning_so.core.vector.memory import Counts, Memory
from lightning_so.errors import StateError
from lightning_so.linalg.vectors import Space
from lightning_so.probe.difference import ProductChoice

#: Of these states; raised when a file of the last one cannot be read.
FORMAT = 1


def state_dict(method: VectorMethod, state: VectorState, space: Space, memory: Memory) -> dict[str, Any]:
    """Everything that resuming needs, safe for `torch.load(weights_only=True)`; a collective where ranks hold pieces.

    Args:
        method: The method.
        state: What it remembers, between steps.
        space: What vectors are.
        memory: What was done, and how products are taken.

    Returns:
        Copies on the CPU: a later step does not change them.
    """
    return {
        "format": FORMAT,
        "method": str(method),
        "vectors": {name: _whole(vectors, space) for name, vectors in state.vectors.items()},
        "numbers": {name: number.clone() for name, number in state.numbers.items()},
        "counts": dict(vars(memory.counts)),
        "examined": None if memory.examined is None else dict(vars(memory.examined)),
    }


def load_state_dict(
    method: VectorMethod, state: VectorState, space: Space, memory: Memory, saved: dict[str, Any]
) -> None:
    """Load what `state_dict` gave, after checking all of it.

    Args:
        method: The same method.
        state: What it remembers; changed in place.
        space: That of the same parameters.
        memory: Changed; what was found out about products stays where they are asked for in the same way.
        saved: The state.

    Raises:
        StateError: If format, method, names or shapes differ; nothing is changed then.
    """
    check_header(saved, FORMAT, str(method))
    mine = {piece.name: piece.whole for piece in space.pieces}
    for name in state.vectors:
        theirs = {key: part.shape[-1] for key, part in saved["vectors"][name].items()}
        if theirs != mine:
            wrong = sorted(key for key in theirs.keys() | mine.keys() if theirs.get(key) != mine.get(key))
            raise StateError(f"parameters differ between the state and this run: {', '.join(wrong[:5])}.")
    for name, vectors in state.vectors.items():
        parts = [saved["vectors"][name][p.name][..., p.first : p.first + p.count] for p in space.pieces]
        vectors.copy_(torch.cat(parts, -1))
    for name, number in state.numbers.items():
        number.copy_(saved["numbers"][name])
    known = None if saved["examined"] is None else ProductChoice(**saved["examined"])
    memory.counts = Counts(**saved["counts"])
    memory.examined = known if known is not None and known.asked == memory.product else None


def _whole(vectors: Tensor, space: Space) -> dict[str, Tensor]:
    """All numbers of some vectors by parameter, on every rank."""
    found = {}
    for piece, part in zip(space.pieces, vectors.split([p.count for p in space.pieces], -1), strict=True):
        whole = torch.zeros(*vectors.shape[:-1], piece.whole, dtype=vectors.dtype, device=vectors.device)
        if piece.counted:
            whole[..., piece.first : piece.first + piece.count] = part
        found[piece.name] = space.total(whole).cpu()
    return found
