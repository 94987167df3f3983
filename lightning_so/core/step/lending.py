"""Biases without a gradient (frozen) in blocks whose weight has one: a block acts as if their gradient was zero.

The base skips what has no gradient; a column of a matrix in another basis must not be skipped. So it gets a gradient of
zeros for its step, and afterwards the bias is what it was before.
"""

from collections.abc import Iterable

import torch

from lightning_so.core.host import Host
from lightning_so.core.stacks.cohort import Cohort


def lend(cohorts: Iterable[Cohort], host: Host) -> None:
    """Give the biases of cohorts that have no gradient one of zeros.

    Args:
        cohorts: The cohorts.
        host: The training.
    """
    for cohort in cohorts:
        for param, zeros in cohort.lent.items():
            host.access.lend(param, zeros.zero_())


def take_back(cohorts: Iterable[Cohort], host: Host) -> None:
    """Undo `lend`; nothing where it was not done.

    Args:
        cohorts: The cohorts.
        host: The training.
    """
    for cohort in cohorts:
        for param, zeros in cohort.lent.items():
            host.access.take_back(param, zeros)


def stay(cohort: Cohort, host: Host) -> None:
    """Write what biases without a gradient were, after their block was written.

    Args:
        cohort: The cohort, whose parameters were hidden.
        host: The training.
    """
    if cohort.lent:
        pairs = [(p, saved) for p, saved in zip(cohort.params, cohort.saved, strict=True) if p in cohort.lent]
        torch._foreach_copy_([host.access.weight(p) for p, _ in pairs], [saved for _, saved in pairs])
