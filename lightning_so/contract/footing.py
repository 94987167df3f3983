"""What a method tells of its preconditioned steps, so that they can be bounded in the unit of the loss."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_so.actions.moments import Base
from lightning_so.actions.precondition import Footing
from lightning_so.contract.loss_unit import LossUnit
from lightning_so.contract.method import Asked, Method
from lightning_so.errors import ConfigError
from lightning_so.linalg.damping import OfRate, Relative, Rule


@runtime_checkable
class KnowsLoss(Method, Protocol):
    """A method that preconditions gradients and has been told how the loss is written."""

    def follow_rates(self, stats: Any, rates: Sequence[float | Tensor]) -> None:
        """Take in the base's learning rates of a step, one a block of the stack."""
        ...

    def footing(self, stats: Any, rows: list[int] | None) -> Footing:
        """What bounds the steps of blocks, None for all of the stack."""
        ...


def footing(loss: LossUnit, rule: Rule, rows: list[int] | slice) -> Footing:
    """What bounds the steps of blocks.

    Args:
        loss: How their losses are written.
        rule: Their damping.
        rows: Which.

    Returns:
        The footing.
    """
    level, unit, given, _ = loss.means[rows].unbind(1)
    of_rate = isinstance(rule, OfRate)
    pace = loss.pace(rows) if of_rate else None
    return Footing(loss.rate[rows], unit, level, given, pace, rule.times if of_rate else 0.0)


def ruling(asked: Sequence[Asked]) -> Relative | Tensor | float:
    """The damping that units of one kind are solved with; a rule in the unit of their rates as that of each, (k,)."""
    first = asked[0][0].rule
    return torch.cat([stats.in_force([unit.row]) for stats, unit in asked]) if isinstance(first, OfRate) else first


def refuse_rate(name: str, rule: Rule, base: Base) -> None:
    """Refuse a damping in the unit of a rate by which no preconditioned gradient is multiplied.

    Args:
        name: Class name of the method.
        rule: Its damping.
        base: The base optimizer.

    Raises:
        ConfigError: If it is one.
    """
    if isinstance(rule, OfRate) and not base.linear:
        raise ConfigError(
            f"{name}(damping={rule}): it is in the unit of SGD's learning rate, and under Adam updates keep Adam's "
            f"length. Use damping=Relative(...), or leave it out."
        )
