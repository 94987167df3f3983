"""*Polish*: keep the length of an update of the base, take the direction of its polar factor.

    u <- |u| O / |O|,    O = polar(u),    so that Q_L u Q_R' becomes |u| polar(Q_L u Q_R') / |O|

It is computed in whatever coordinates the update is in: polar(Q_L u Q_R') = Q_L polar(u) Q_R'.
"""

import torch
from torch import Tensor

from lightning_so.linalg.polar import PolarFactor
from lightning_so.linalg.precision import FullPrecision
from lightning_so.linalg.unseen import maybe


@FullPrecision()
def polished(update_BMN: Tensor, factor: PolarFactor) -> Tensor:
    """Updates along their polar factors, with their own Frobenius lengths.

    Args:
        update_BMN: The base's updates, shape (B, M, N).
        factor: Finds polar factors.

    Returns:
        The polished updates; one whose factor vanishes or is not finite stays as it is.
    """
    factor_BMN = factor(update_BMN)
    u, d = (torch.linalg.vector_norm(X, dim=(1, 2)) for X in (update_BMN, factor_BMN))
    scale = (u / d)[:, None, None]
    found = factor_BMN * scale
    lost = ~scale.isfinite()
    return torch.where(lost, update_BMN, found) if maybe(lost) else found
