"""The state of a method on the whole parameter vector in files: whole tensors by parameter, for any number of ranks."""

from typing import Any

import torch
from torch import Tensor

from lightning_so.core.vector.engine import VectorEngine
from lightning_so.core.vector.memory import Counts
from lightning_so.errors import StateError
from lightning_so.linalg.vectors import Space

FORMAT = 1


def state_dict(engine: VectorEngine) -> dict[str, Any]:
    """Everything that resuming needs, safe for `torch.load(weights_only=True)`; a collective where ranks hold pieces.

    Args:
        engine: The engine, between steps.

    Returns:
        Copies on the CPU: a later step does not change them.
    """
    space, state = engine.whole.space, engine.state
    return {
        "format": FORMAT,
        "method": str(engine.method),
        "vectors": {name: _whole(vectors, space) for name, vectors in state.vectors.items()},
        "numbers": {name: number.clone() for name, number in state.numbers.items()},
        "counts": dict(vars(engine.counts)),
        "examined": None if engine.examined is None else dict(vars(engine.examined)),
    }


def load_state_dict(engine: VectorEngine, saved: dict[str, Any]) -> None:
    """Load what `state_dict` gave, after checking all of it.

    Args:
        engine: An engine of the same model and method.
        saved: The state.

    Raises:
        StateError: If format, method, names or shapes differ; nothing is changed then.
    """
    found = saved.get("format") if isinstance(saved, dict) else type(saved).__name__
    if found != FORMAT:
        raise StateError(f"state format is {found!r}, this version reads {FORMAT}: load it with the one that wrote it.")
    if saved["method"] != str(engine.method):
        raise StateError(
            f"the state is of {saved['method']}, this run uses {engine.method}: use the same arguments, or start "
            f"without the state."
        )
    space, state = engine.whole.space, engine.state
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
    engine.recall(Counts(**saved["counts"]), saved["examined"])


def _whole(vectors: Tensor, space: Space) -> dict[str, Tensor]:
    """All numbers of some vectors by parameter, on every rank."""
    found = {}
    for piece, part in zip(space.pieces, vectors.split([p.count for p in space.pieces], -1), strict=True):
        whole = torch.zeros(*vectors.shape[:-1], piece.whole, dtype=vectors.dtype, device=vectors.device)
        if piece.counted:
            whole[..., piece.first : piece.first + piece.count] = part
        found[piece.name] = space.total(whole).cpu()
    return found
