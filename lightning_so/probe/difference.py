"""How products are taken of a training's gradient: found out once, from the gradient itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.errors import ConfigError
from lightning_so.linalg.products import STEPS, FiniteDifference
from lightning_so.probe.double_backward import AGAIN
from lightning_so.probe.parameters import ParameterVector

#: Products of two steps that differ by more than this are of a gradient too rough for the smaller one.
ROUGH = 0.05
#: Why differences are central where nothing else is known.
UNSURE = "a gradient was not finite"


@dataclass(frozen=True)
class ProductChoice:
    """How products are taken.

    Attributes:
        step: See `FiniteDifference.step`.
        central: See `FiniteDifference.central`.
        why: The reason.
        asked: What was asked for; one of `PRODUCTS`.
        exact: Whether they are taken by double backward, and not by differences.
        sure: Whether it is of finite numbers; else it is for this step alone, and the next is to be asked again.
    """

    step: float
    central: bool
    why: str
    asked: str = "difference"
    exact: bool = False
    sure: bool = True

    def __str__(self) -> str:
        """In words."""
        if self.exact:
            return f"products by double backward ({self.why})"
        return f"products by {'central' if self.central else 'forward'} differences of gradients ({self.why})"


def choose_product(
    name: str, vector: ParameterVector, gradient: Callable[[], Tensor], here: Tensor, half: bool
) -> ProductChoice:
    """Choose between forward and central differences; a collective.

    Args:
        name: Who asks, for the message.
        vector: The parameters.
        gradient: Gives the gradient at the weights, shape (n,).
        here: What it should give where they are.
        half: Whether it is computed in half precision.

    Returns:
        How, and why; central and not sure where a gradient is not finite, which says nothing.

    Raises:
        ConfigError: If the gradient is another each time.
    """
    space = vector.space
    apart, length = space.norm(gradient() - here), space.norm(here)
    step = STEPS[torch.bfloat16 if half else space.dtype]
    if not math.isfinite(apart):
        return ProductChoice(step, True, UNSURE, sure=False)
    if apart > AGAIN * length:
        raise ConfigError(
            f"{name}: the same training step twice, with the same batch, weights and random numbers, gave gradients "
            f"{apart / max(length, 1e-30):.1e} apart: it remembers something (an attribute that it writes, a generator "
            f"of its own). Differences of such gradients are no curvature."
        )
    if half:
        return ProductChoice(step, True, "half precision")
    v = space.normal(0)
    once, twice = (FiniteDifference(vector.weights, gradient, space, r, here=here)(v) for r in (step, 2 * step))
    rough = space.norm(once - twice) / max(space.norm(once), 1e-30)
    if not math.isfinite(rough):
        return ProductChoice(step, True, UNSURE, sure=False)
    why, central = f"steps of {step:.0e} and twice that differ by {rough:.1e}", not rough <= ROUGH
    if central:
        why += ": the gradient jumps, as that of ReLU does, and what is seen may be several times too large"
    return ProductChoice(step, central, why)
