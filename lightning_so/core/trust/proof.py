"""Proof of work: what was really observed, solved and applied, block by block, against what was promised."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_so.errors import TrustError

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


#: Steps in a row that may be prepared and not finished: a user may skip one, a lost hook loses them all.
PATIENCE = 3


@dataclass(frozen=True)
class Work:
    """What was done with one block.

    Attributes:
        name: The block.
        observed: Steps at which its gradient was seen.
        bent: Steps at which it was bent.
        rotated: Steps at which it was rotated.
        preconditioned: Steps at which its gradient was preconditioned.
        solves: Good solves of its units since it was last cold.
        age: Steps since the oldest of its units was solved; 0 without units.
    """

    name: str
    observed: int
    bent: int
    rotated: int
    preconditioned: int
    solves: int
    age: int


def work(engine: "Engine") -> list[Work]:
    """What was done with every block."""
    schedule, found = engine.schedule, []
    ages = schedule.ages(engine.report.step)
    for index, stack in enumerate(engine.stacks):
        counts = engine.proof.of(index, engine.batches[index])
        for row, block in enumerate(stack.blocks):
            units = engine.units_of[index][row]
            solves = sum(schedule.solved[unit] for unit in units)
            age = max((ages[unit] for unit in units), default=0)
            observed, bent, rotated, preconditioned = counts[row]
            found.append(Work(block.name, observed, bent, rotated, preconditioned, solves, age))
    return found


def staleness(engine: "Engine") -> tuple[int, int]:
    """The largest age of a unit, and the age that 95 % of the units do not exceed; (0, 0) without units."""
    ages = sorted(engine.schedule.ages(engine.report.step))
    return (ages[-1], ages[int(0.95 * (len(ages) - 1))]) if ages else (0, 0)


def check(engine: "Engine") -> None:
    """Stop a training in which promised work is not done.

    Args:
        engine: The engine, at the start of a step.

    Raises:
        TrustError: If prepared steps are never finished, or a unit was not tried within its bound.
    """
    base = type(engine.optimizer).__name__
    if engine.unfinished >= PATIENCE:
        names = ", ".join(block.name for block in engine.plan.blocks[:3])
        raise TrustError(
            f"{PATIENCE} steps of {base} in a row were prepared (hidden: {names}, ...) and never finished: its "
            f"step_post_hook does not fire, or its step is not called after on_before_optimizer_step. The weights are "
            f"unchanged. Let the Trainer or `optimizer.step()` do the step, or remove SecondOrder."
        )
    overdue = engine.schedule.overdue(engine.report.step)
    if overdue:
        unit = engine.schedule.units[overdue[0]]
        name = engine.stacks[unit.stack].blocks[unit.row].name
        raise TrustError(
            f"{name}: its basis was not solved within {engine.schedule.bound(overdue[0])} steps ({len(overdue)} of "
            f"{len(engine.schedule.units)} units are overdue). Raise Staggered(headroom=...), or report the plan:\n"
            f"{engine.plan}"
        )


def check_prepared(engine: "Engine") -> None:
    """Stop a training whose base steps past us.

    Args:
        engine: The engine, after the base's step.

    Raises:
        TrustError: If the step was not prepared.
    """
    if not engine.prepared:
        names = " and ".join(type(method).__name__ for method in engine.methods)
        raise TrustError(
            f"{type(engine.optimizer).__name__} has stepped, and {names} was not asked before: "
            f"that step was the plain one. A hook was removed from the optimizer, or its closure was called by "
            f"something else. Let the Trainer or `optimizer.step()` do the step."
        )
