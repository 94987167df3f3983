"""Whether methods work on enough of an optimizer's elements."""

from typing import TYPE_CHECKING

import torch

from lightning_so.errors import ConfigError

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def require(engine: "Engine", least: float) -> None:
    """Refuse a plan that covers nothing, or too little: on all ranks or on none.

    Args:
        engine: The engine, whose plan is new.
        least: Smallest share of the elements.

    Raises:
        ConfigError: If less is covered.
    """
    share, plan = covered(engine), engine.plan
    if share == 0:
        raise ConfigError(
            f"coverage is 0: {plan.method} works on none of the {len(plan.rows)} parameters of {plan.base}. "
            f"Remove the callback, or route parameters to it.\n{plan}"
        )
    if share < least:
        raise ConfigError(f"coverage {share:.3f} is below min_coverage={least}: lower it or change the route.\n{plan}")


def covered(engine: "Engine") -> float:
    """Share of the elements that methods work on: of all ranks together where each has blocks of its own."""
    if not engine.access.local:
        return engine.plan.coverage
    rows = engine.plan.rows
    counts = [sum(row.numel for row in rows if row.covered), sum(row.numel for row in rows)]
    totals = torch.tensor(counts, dtype=torch.float64)
    engine.peers.sum(totals)
    part, all_of_them = totals.tolist()
    return part / all_of_them if all_of_them else 0.0
