"""A spectrum at every look, in the form of a recording, and never more of them than fit."""

import math
from typing import Any

from lightning_so.monitor.extremes import Extremes

#: Spectra that are kept; of more, every second is let go.
MOST = 200


def remember(spectra: list[dict[str, Any]], seen: Extremes, *, step: int, lr: float, noise_scale: float | None) -> None:
    """Add what a look has seen; of too many, every second goes, so that those that stay are of the whole run.

    Args:
        spectra: All so far, changed in place.
        seen: What was seen.
        step: When.
        lr: The learning rate.
        noise_scale: The gradient noise scale in samples; None where it is not known.
    """
    if len(spectra) >= MOST:
        del spectra[1::2]
    spectra.append(
        {
            "step": step,
            "values": list(seen.values),
            "weights": list(seen.weights),
            "top": list(seen.tops),
            "bottom": seen.bottom,
            "trace": seen.trace if math.isfinite(seen.trace) else None,
            "negative": seen.negative,
            "lr": lr,
            "noise_scale": noise_scale,
        }
    )
