"""The step that is being made."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from lightning_so.actions import hide
from lightning_so.core.matrices.matrices import Matrices
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.core.step import lending
from lightning_so.core.step.reference import Reference


@dataclass
class Progress:
    """How far one step of the base has come, from its preparation to its last call.

    Attributes:
        hidden: The cohorts whose parameters are hidden now.
        call: Calls of the base's step that have ended.
        reference: What one block must become, where that is checked.
    """

    hidden: list[Cohort] = field(default_factory=list)
    call: int = 0
    reference: Reference | None = None


def put_back(hidden: list[Cohort], matrices: Matrices) -> None:
    """Write hidden parameters back as they were, after a step that was skipped or failed.

    An interrupt in the middle leaves the others in the list.

    Args:
        hidden: The cohorts; empty afterwards.
        matrices: Where their weights are.
    """
    while hidden:
        cohort = hidden.pop()
        hide.restore(matrices.weights(cohort), cohort.saved)
        lending.take_back([cohort], matrices.host)


@contextmanager
def shown(hidden: Sequence[Cohort], matrices: Matrices) -> Iterator[bool]:
    """Put hidden weights in their place inside the context, in the middle of a step too: a file must not hold zeros.

    Args:
        hidden: The cohorts whose parameters are hidden.
        matrices: Where their weights are.

    Yields:
        Whether they are hidden again afterwards: what shares their memory must be copied before.
    """
    pairs = [(matrices.weights(cohort), cohort.saved) for cohort in hidden]
    with torch.no_grad():
        before = [[weight.clone() for weight in weights] for weights, _ in pairs]
        for weights, saved in pairs:
            hide.restore(weights, saved)
    try:
        yield bool(pairs)
    finally:
        with torch.no_grad():
            for (weights, _), values in zip(pairs, before, strict=True):
                torch._foreach_copy_(weights, values)
