"""Whether methods work on enough of an optimizer's elements."""

import torch

from lightning_so.core.host import Host
from lightning_so.core.plan.table import Plan
from lightning_so.errors import ConfigError, UnusableError


def require(plan: Plan, host: Host, least: float) -> None:
    """Refuse a plan that covers nothing, or too little: on all ranks or on none.

    Args:
        plan: The plan.
        host: The training.
        least: Smallest share of the elements.

    Raises:
        UnusableError: If nothing is.
        ConfigError: If less is covered.
    """
    share = covered(plan, host)
    if share == 0:
        raise UnusableError(
            f"coverage is 0: {plan.method} works on none of the {len(plan.rows)} parameters of {plan.base}. "
            f"Remove the callback, or route matrices to it.\n{plan}"
        )
    if share < least:
        raise ConfigError(f"coverage {share:.3f} is below min_coverage={least}: lower it or change the route.\n{plan}")


def covered(plan: Plan, host: Host) -> float:
    """Share of the elements that methods work on: of all ranks together where each has blocks of its own."""
    if not host.access.local:
        return plan.coverage
    totals = torch.tensor(plan.elements, dtype=torch.float64)
    host.world.sum(totals)
    part, all_of_them = totals.tolist()
    return part / all_of_them if all_of_them else 0.0
