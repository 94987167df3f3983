"""Proof of work: what was really observed, solved and applied, block by block, against what was promised."""

from collections.abc import Iterable
from dataclasses import dataclass

from lightning_so.contract.method import Method
from lightning_so.core.host import Host
from lightning_so.core.plan.table import Plan
from lightning_so.core.schedule.units import Units
from lightning_so.core.stacks.roster import Roster
from lightning_so.errors import TrustError

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


def work(units: Units, roster: Roster, step: int) -> list[Work]:
    """What was done with every block.

    Args:
        units: How often each was solved.
        roster: What each block took part in.
        step: Steps made.

    Returns:
        One a block, in the order of the stacks.
    """
    schedule, found = units.schedule, []
    ages = schedule.ages(step)
    for index, stack in enumerate(units.stacks):
        counts = roster.done(index)
        for row, block in enumerate(stack.blocks):
            numbers = units.of_block((index, row))
            solves = sum(schedule.solved[number] for number in numbers)
            age = max((ages[number] for number in numbers), default=0)
            observed, bent, rotated, preconditioned = counts[row]
            found.append(Work(block.name, observed, bent, rotated, preconditioned, solves, age))
    return found


def staleness(units: Units, step: int) -> tuple[int, int]:
    """The largest age of a unit, and the age that 95 % of the units do not exceed; (0, 0) without units."""
    ages = sorted(units.schedule.ages(step))
    return (ages[-1], ages[int(0.95 * (len(ages) - 1))]) if ages else (0, 0)


def check_finished(unfinished: int, host: Host, plan: Plan) -> None:
    """Stop a training whose prepared steps are never finished.

    Args:
        unfinished: Steps in a row that were prepared and not finished.
        host: The training.
        plan: Names the blocks.

    Raises:
        TrustError: If there are too many.
    """
    if unfinished < PATIENCE:
        return
    names = ", ".join(block.name for block in plan.blocks[:3])
    raise TrustError(
        f"{PATIENCE} steps of {type(host.optimizer).__name__} in a row were prepared (hidden: {names}, ...) and never "
        f"finished: its step_post_hook does not fire, or `engine.step()` was called and its step was not. The "
        f"weights are unchanged. Let the Trainer or `optimizer.step()` do the step, or remove SecondOrder."
    )


def check_solved(units: Units, step: int, plan: Plan) -> None:
    """Stop a training in which promised solves are not done.

    Args:
        units: When each was tried.
        step: Steps made.
        plan: What was promised.

    Raises:
        TrustError: If a unit was not tried within its bound.
    """
    overdue = units.schedule.overdue(step)
    if overdue:
        raise TrustError(
            f"{units.block(overdue[0]).name}: its basis was not solved within {units.schedule.bound(overdue[0])} steps "
            f"({len(overdue)} of {len(units)} units are overdue). Raise Staggered(headroom=...), or report the plan:\n"
            f"{plan}"
        )


def check_prepared(prepared: bool, host: Host, methods: Iterable[Method]) -> None:
    """Stop a training whose base steps past us.

    Args:
        prepared: Whether the step that the base has made was prepared.
        host: The training.
        methods: Those that should have been asked.

    Raises:
        TrustError: If it was not.
    """
    if not prepared:
        names = " and ".join(type(method).__name__ for method in methods)
        raise TrustError(
            f"{type(host.optimizer).__name__} has stepped, and {names} was not asked before: "
            f"that step was the plain one. A hook was removed from the optimizer, or its closure was called by "
            f"something else. Let the Trainer or `optimizer.step()` do the step."
        )
