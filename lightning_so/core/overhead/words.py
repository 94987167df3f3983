"""What is said of a choice: the numbers it comes from, what was bought, and what would fit where nothing does."""

from lightning_so.contract.known import KNOWN
from lightning_so.contract.method import Action, Taps
from lightning_so.core.overhead.choice import Choice
from lightning_so.core.overhead.timings import Timings
from lightning_so.core.schedule.units import Units
from lightning_so.core.stacks.stack import Stack, methods_of


def chosen(share: float, timings: Timings, choice: Choice) -> str:
    """The choice and its reasons, in two lines at most.

    Args:
        share: What was asked for.
        timings: What was measured.
        choice: What was bought.

    Returns:
        The lines.
    """
    own, steady = 1e3 * timings.own, 1e3 * timings.steady
    lines = f"max_overhead={share:.3g}: the training's own step takes {own:.3g} ms, ours {steady:.3g} ms at each"
    if timings.hooks + timings.folding:
        lines += f" and {1e3 * timings.rows(choice.thinning):.3g} ms where all layers are watched"
    if not choice.every:
        return f"{lines}: {_percent(choice.predicted)}, and there is nothing to solve."
    every = _between(min(choice.every), max(choice.every))
    costs = 1e3 * min(choice.costs), 1e3 * max(choice.costs)
    lines += f".\n  {len(choice.every)} units of {_between(*(f'{cost:.2g}' for cost in costs))} ms are solved every "
    lines += f"{every} steps" + (f", one of {choice.thinning} rows is taken" if choice.thinning > 1 else "")
    lines += ", blocks rotate as soon as they can" if choice.early else ""
    return f"{lines}: {_percent(choice.predicted)} in all, the largest step {choice.largest:.2f} of the median one."


def unmet(share: float, timings: Timings, choice: Choice, units: Units) -> str:
    """Why the share cannot be kept, and what would fit.

    Args:
        share: What was asked for.
        timings: What was measured.
        choice: The nearest that can be bought.
        units: Of which methods.

    Returns:
        The sentences.
    """
    names = " and ".join(type(method).__name__ for method in methods_of(units.stacks))
    steady = timings.steady / timings.own
    what = (
        f"SecondOrder(max_overhead={share:.3g}) cannot be kept: {names}'s steady work alone is {_percent(steady)} of "
    )
    what += f"the training's own step of {1e3 * timings.own:.3g} ms, {_percent(choice.floor)} with the fewest solves."
    ways = f"raise max_overhead to {choice.floor + 0.01:.2f}, or take larger batches"
    name, guess = _cheaper(units, steady)
    if name and guess < steady:
        fits = "would fit" if guess <= share else "is nearer"
        ways += f"; {name}(), modelled at {_percent(guess)}, {fits}"
    return f"{what} To keep it, {ways}."


def unequal(timings: Timings, before: Timings, difference: float) -> str:
    """That two rounds of measuring differ."""
    return (
        f"max_overhead: the training's own step took {1e3 * before.own:.3g} ms in one round of measuring and "
        f"{1e3 * timings.own:.3g} ms in the next, {_percent(difference)} apart: the machine does other work, or steps "
        f"differ. Medians are used; what is kept may be off by as much."
    )


def moved(device: str, here: str) -> str:
    """That timings are of another device."""
    return f"max_overhead: the timings in the checkpoint are of {device}, and this is {here}: they are measured anew."


def _cheaper(units: Units, steady: float) -> tuple[str, float]:
    """A method that keeps no statistics, and the share that it would take, by the proportion of modelled work."""
    work = sum(stack.method.step_cost(stack, action) * len(stack.blocks) for stack, action in _acts(units))
    for cls in KNOWN.values():
        if getattr(cls, "taps", None) is not Taps.NONE or any(isinstance(s.method, cls) for s in units.stacks):
            continue
        hidden = [stack for stack in units.stacks if not stack.blocks[0].edge]
        would = sum(cls().step_cost(stack, Action.BEND) * len(stack.blocks) for stack in hidden)
        return cls.__name__, steady * would / work if work else 0.0
    return "", 0.0


def _acts(units: Units) -> list[tuple[Stack, Action]]:
    return [(stack, Action.ROTATE if stack.rotates else Action.BEND) for stack in units.stacks]


def _between(low: object, high: object) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
