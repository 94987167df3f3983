"""*Bend*: keep the length of the base's update, take the direction from curvature.

    p <- p0 (1 - lr wd) - |u| d / |d|,    u the base's update, d = P m, m its first moment

The sign is minus under `maximize` too, since the base then stores the moment of the negated gradient.
"""

import torch
from torch import Tensor


def bend(update_BMN: Tensor, direction_BMN: Tensor) -> Tensor:
    """Turn every update of a batch against its direction, at its own Frobenius length.

    Args:
        update_BMN: The base's updates u, shape (B, M, N).
        direction_BMN: The directions d, same shape.

    Returns:
        `-|u| d / |d|`; u itself where d vanishes or is not finite.
    """
    u = torch.linalg.vector_norm(update_BMN, dim=(1, 2), keepdim=True)
    d = torch.linalg.vector_norm(direction_BMN, dim=(1, 2), keepdim=True)
    usable = d.isfinite() & (d > 0)
    return torch.where(usable, direction_BMN * -(u / torch.where(usable, d, 1)), update_BMN)
