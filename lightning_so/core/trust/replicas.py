"""Whether the ranks' weights are still equal."""

import torch
from torch import Tensor

from lightning_so.core.host import Host
from lightning_so.core.plan.table import Plan
from lightning_so.errors import TrustError


def compare(host: Host, plan: Plan, step: int, *, every: int) -> None:
    """Compare the ranks' weights where that is due: a collective.

    Args:
        host: The training.
        plan: Names its parameters.
        step: The step that was made.
        every: Steps between two comparisons; 0 for never.

    Raises:
        TrustError: If they differ, on all ranks.
    """
    team = host.team
    if not every or team.ranks == 1 or step % every:
        return
    mine = torch.stack([fingerprint(p) for p in host.params])
    wires = team.gather(mine.view(torch.uint8), [mine.nbytes] * team.ranks)
    rows = [wire.clone().view(torch.int64) for wire in wires]
    different = [rank for rank, row in enumerate(rows) if not torch.equal(row, rows[0])]
    if not different:
        return
    number = int((rows[different[0]] != rows[0]).nonzero()[0])
    raise TrustError(
        f"step {step}: the weights of ranks {different} differ from rank 0's, first in "
        f"{plan.rows[number].name}. "
        f"Something changes weights or gradients on one rank only: look for rank-dependent code after the "
        f"backward pass, and for unequal seeds at start."
    )


def fingerprint(tensor: Tensor) -> Tensor:
    """A 64-bit sum over the bits of a tensor, each weighted by its place: equal tensors give equal numbers."""
    bits = tensor.detach().flatten().view(torch.uint8).long()
    places = torch.arange(1, bits.numel() + 1, device=bits.device)
    return (bits * (places * 2_654_435_761 % 4_294_967_291)).sum()
