"""The method where the user names none."""

from lightning_so.actions.moments import Base
from lightning_so.contract.known import KNOWN
from lightning_so.core.plan.mixture import Mixture


def recommended(base: Base) -> Mixture:
    """SOAP before optimizers with second moments, K-FAC before SGD, where rotations change nothing.

    `benchmarks/anywhere` says how often either is better than its base, and how much worse it is where it is not.

    Args:
        base: The optimizer's entry in the registry.

    Returns:
        The method for all parameters, with its defaults.
    """
    return Mixture.of(KNOWN["kfac" if base.linear else "soap"]())
