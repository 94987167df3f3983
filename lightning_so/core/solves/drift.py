"""How far a basis has turned since it was solved before, where someone watches; the host reads nothing."""

import torch
from torch import Tensor


def drift(old: Tensor, new: Tensor, order: Tensor) -> Tensor:
    """The share of the columns' squared length that has left their old axes, the largest over some bases.

        1 - mean_j (q_j' p_order(j))^2

    0 where nothing has turned, 1 where no column has kept any of its direction.

    Args:
        old: The bases P that were, shape (k, Q, T, T).
        new: The bases that are, of the same shape.
        order: Column j of `new` continues column `order[b, q, j]` of `old`, shape (k, Q, T).

    Returns:
        The share, a scalar on the bases' device.
    """
    continued = old.gather(3, order[:, :, None].expand(old.shape))
    kept = (continued * new).sum(2, dtype=torch.float32).square().mean(2)
    return 1 - kept.amin()
