"""A loss, if it is one."""

from typing import Any

from torch import Tensor

from lightning_so.errors import ConfigError
from lightning_so.linalg.plain import plain


def scalar(loss: Any, whose: str, way: str) -> Tensor:
    """A loss, if it is one.

    Args:
        loss: What was given for it.
        whose: Who gave it, for the message.
        way: What to do else, for the message.

    Returns:
        The loss.

    Raises:
        ConfigError: If it is no number with a graph.
    """
    tensor = isinstance(loss, Tensor)
    if tensor and loss.numel() == 1 and loss.requires_grad:
        return plain(loss)
    graph = "a" if tensor and loss.requires_grad else "no"
    what = f"shape {tuple(loss.shape)} and {graph} graph" if tensor else f"type {type(loss).__name__}"
    raise ConfigError(f"{whose}: the loss has {what}: curvature is that of a scalar that the weights have made. {way}")
