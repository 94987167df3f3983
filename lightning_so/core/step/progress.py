"""The step that is being made."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from lightning_so.actions import hide

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


@contextmanager
def shown(engine: "Engine") -> Iterator[bool]:
    """Have the weights in their place for a while, in the middle of a step too: a file must not hold zeros.

    Args:
        engine: The engine.

    Yields:
        Whether they are hidden again afterwards: what shares their memory must be copied before.
    """
    hidden = [(engine.layout.weights(batch), batch.saved) for batch in engine.acting]
    with torch.no_grad():
        before = [[weight.clone() for weight in weights] for weights, _ in hidden]
        for weights, saved in hidden:
            hide.restore(weights, saved)
    try:
        yield bool(hidden)
    finally:
        with torch.no_grad():
            for (weights, _), values in zip(hidden, before, strict=True):
                torch._foreach_copy_(weights, values)
