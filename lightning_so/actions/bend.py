"""*Bend*: take the length from the base's update, the direction from curvature.

    p <- p0 (1 - lr wd) - s |u| d / |d|,    u the base's update, d = P m, m its first moment; s: see `stretch`

The sign is minus under `maximize` too, since the base then stores the moment of the negated gradient.
"""

import torch
from torch import Tensor


def bent(direction_BMN: Tensor, lengths_B: Tensor) -> Tensor:
    """Updates of given lengths against their directions: `-|u| d / |d|`.

    Args:
        direction_BMN: The directions d.
        lengths_B: Frobenius lengths |u| of the base's updates.

    Returns:
        The updates; NaN, all of it, where d vanishes or is not finite: the base's own is to stay there.
    """
    d = torch.linalg.vector_norm(direction_BMN, dim=(1, 2))
    # d / -d is -1, and NaN where d is zero, infinite or NaN.
    scale = (lengths_B / d).mul_(d / -d)
    return direction_BMN * scale[:, None, None]
