"""Hide parameters from the base optimizer: saved, zeroed in place, written back after its step.

In place, because a swapped `p.data` is silently wrong for sharded tensors; zeroed, because the base's update is then
exactly what the parameter holds, without the rounding of a difference.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def save(params: list[Tensor], saved: list[Tensor]) -> None:
    """Save the parameters; they are not hidden yet."""
    torch._foreach_copy_(saved, params)


def hide(params: list[Tensor]) -> None:
    """Zero saved parameters in place."""
    torch._foreach_zero_(params)


def restore(params: list[Tensor], saved: list[Tensor]) -> None:
    """Put hidden parameters back to what they were, after a step that was skipped or failed."""
    torch._foreach_copy_(params, saved)


def couple_decay(gradients: list[Tensor], params: list[Tensor], group: dict) -> None:
    """Add coupled weight decay to the gradients, which the base cannot do on a zeroed parameter.

    `g <- g + wd p0`; under `maximize` the base negates g first, so the sign is minus.

    Args:
        gradients: Gradients, changed in place.
        params: The parameters, not yet hidden.
        group: Their param group.
    """
    decay = group["weight_decay"]
    if isinstance(decay, Tensor) or decay != 0:
        sign = -1.0 if group.get("maximize") else 1.0
        torch._foreach_add_(gradients, torch._foreach_mul(params, sign * decay))


def shrink(group: dict, *, decoupled: bool) -> float | Tensor:
    """The factor that decoupled weight decay puts on p0: `1 - lr wd`, or 1 where decay is coupled."""
    if not decoupled:
        return 1.0
    return 1 - group["lr"] * group["weight_decay"]


def combine(
    p0: Tensor,
    update: Tensor,
    factors: list[float | Tensor],
    room: Tensor,
    spread: Callable[[Tensor], Tensor],
) -> Tensor:
    """`p0 (1 - lr wd) + update`, in the update's dtype (float32 or wider), rounded once when it is written back.

    Args:
        p0: The saved parameters of a batch, or this rank's pieces of them.
        update: What to add, of the same shape, changed in place.
        factors: `shrink` of each block, of which there are k.
        room: Work space of the update's dtype and shape.
        spread: Gives a number for each block, (k,), a shape that multiplies `p0`.

    Returns:
        The new parameters, in `update`'s storage.
    """
    p0, first = p0 if p0.dtype == room.dtype else room.copy_(p0), factors[0]
    if not isinstance(first, Tensor) and factors.count(first) == len(factors):
        # Multiplied first and added then, in two roundings, as the optimizers do: a fused form would not equal them.
        return update.add_(p0 if first == 1 else torch.mul(p0, first, out=room))
    return update.add_(torch.mul(p0, spread(torch.stack([torch.as_tensor(f).to(p0) for f in factors])), out=room))
