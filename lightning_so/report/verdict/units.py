"""Of the outputs of layers: dead and saturated units, layers of few directions, outputs that explode."""

from collections.abc import Iterator
from statistics import median

from lightning_so.recording.levels import COLLAPSED, DEAD, EXPLODING, SATURATED, WIDE
from lightning_so.report.run import Matrix, Run
from lightning_so.report.verdict.finding import BAD, WARN, Check, Finding, figure, listed

#: Looks that are the end of a run: its last quarter, and no fewer than this.
LATE, LOOKS = 4, 2
#: Shares of a layer's units from which on next to nothing passes, and nothing.
ALL, WHOLE = 0.95, 0.999
#: Answers of a network may be as large as their targets: the last layer's must have grown by this factor too.
GREW = 30.0

UNWATCHED = (
    "Outputs of layers were not looked at: the recorder looks at those of layers with an activation every 100 steps."
)


def _late(numbers: list[float | None]) -> float | None:
    """The level of a layer at the end of the run."""
    known = [number for number in numbers[-max(LOOKS, len(numbers) // LATE) :] if number is not None]
    return median(known) if known else None


def _since(matrix: Matrix, numbers: list[float | None], limit: float) -> int:
    """The step from which on a share has been above a limit."""
    below = [step for step, number in zip(matrix.steps, numbers) if number is not None and number < limit]
    return next((step for step in matrix.steps if not below or step > below[-1]), matrix.steps[-1])


def _looked(matrix: Matrix) -> tuple[int, int]:
    """Layers of which anything is known, and looks."""
    return sum(any(number is not None for number in numbers) for _, numbers in matrix.layers()), len(matrix.steps)


def _above(matrix: Matrix, limit: float) -> Iterator[tuple[str, float, int, str]]:
    """Layers of which so large a share is ill at the end: the share, the step since which, and the figures in words."""
    for name, numbers in matrix.layers():
        share = _late(numbers)
        if share is not None and share >= limit:
            since = _since(matrix, numbers, limit)
            why = f"{share:.1%} at the end, above {limit:.0%} since step {since:,}; {_looked(matrix)[1]} looks."
            yield name, share, since, why


def _most(matrix: Matrix) -> float:
    """The largest share of any layer at the end."""
    return max((_late(numbers) or 0.0 for _, numbers in matrix.layers()), default=0.0)


def dead(run: Run) -> Check:
    """Layers of which many units are zero for all samples."""
    matrix = run.units("dead")
    if matrix is None or not _looked(matrix)[0]:
        return Check(missing="No layer with units that can die (ReLU and the like) was looked at.")
    found = []
    for name, share, since, why in _above(matrix, DEAD):
        what = f"{share:.0%} of the units of {name} are dead: zero for every sample."
        stuck = _without_gradient(run) if share >= WHOLE else []
        why += f" No gradient passes: {listed(stuck)} did not move." if stuck else ""
        move = (
            "A bias far below zero or a rate that was too high has pushed them there: lower the rate or warm up, start "
            f"the bias of {name} at zero, or use GELU or LeakyReLU. Second order does not wake dead units."
        )
        severity = BAD if share >= ALL else WARN
        found.append(Finding(severity, "dead", name, what, why, move, "dead", (since, matrix.steps[-1])))
    layers, looks = _looked(matrix)
    most = _most(matrix)
    good = f"No dead layer among {layers} over {looks} looks; the largest share of dead units at the end is {most:.0%}."
    return Check(found, "" if found else good)


def _without_gradient(run: Run) -> list[str]:
    """Layers whose last gradients were zero."""
    gradients = run.layers.get("gradient")
    return [name for name, numbers in gradients.layers() if not _late(numbers)] if gradients else []


def blocked(run: Run) -> bool:
    """Whether a layer is dead or saturated as a whole, so that no gradient reaches what comes before it."""
    matrices = [matrix for quantity in ("dead", "saturated") if (matrix := run.units(quantity)) is not None]
    return any(_most(matrix) >= WHOLE for matrix in matrices)


def saturated(run: Run) -> Check:
    """Layers whose tanh or sigmoid is at its ends."""
    matrix = run.units("saturated")
    if matrix is None or not _looked(matrix)[0]:
        return Check(missing="No layer with units that can saturate (tanh, sigmoid) was looked at.")
    found = []
    for name, share, since, why in _above(matrix, SATURATED):
        what = f"{share:.0%} of the units of {name} are saturated: at the ends of tanh or sigmoid."
        move = (
            f"Next to no gradient passes {name}. Start its weights smaller (Xavier: 1 / sqrt(fan in)), normalise what "
            "it reads, or lower the rate; decay of its weights brings them back."
        )
        severity = BAD if share >= ALL else WARN
        found.append(Finding(severity, "saturated", name, what, why, move, "saturated", (since, matrix.steps[-1])))
    layers, looks = _looked(matrix)
    most = _most(matrix)
    good = f"No saturated layer among {layers} over {looks} looks; the largest share at the end is {most:.0%}."
    return Check(found, "" if found else good)


def collapsed(run: Run) -> Check:
    """Layers whose outputs vary along one direction, though what they read does not."""
    matrix = run.units("rank")
    if matrix is None or not _looked(matrix)[0]:
        return Check(missing="No effective rank of outputs was recorded.")
    widths = dict(zip(matrix.names, _widths(run)))
    shapes = (run.first.get("layers") or {}).get("shapes") or []
    late = {name: rank for name, numbers in matrix.layers() if (rank := _late(numbers)) is not None}
    # What is told apart in two classes, or is one number, needs one direction in the end.
    free = list(late)[-2:] if shapes and shapes[-1][0] <= 2 else []
    found = []
    for name, rank in late.items():
        if rank >= COLLAPSED or widths[name] < WIDE or name in free:
            continue
        what = f"The outputs of {name} vary along one direction."
        why = f"An effective rank of {rank:.3g} of {widths[name]} units at the end, while what it reads has more."
        move = (
            f"All that comes after {name} sees one number a sample: start its weights anew (orthogonal), look for a "
            "normalisation or a skip connection that is missing, and for a rate that is too high."
        )
        found.append(Finding(WARN, "collapsed", name, what, why, move, "rank", (matrix.steps[0], matrix.steps[-1])))
    layers, looks = _looked(matrix)
    least = min(late.values(), default=None)
    good = f"No layer has collapsed among {layers} over {looks} looks; the least effective rank is {figure(least)}."
    return Check(found, "" if found else good)


def _widths(run: Run) -> list[int]:
    return next(each["units"]["width"] for each in run.recordings if each.get("units"))


def large(run: Run) -> Check:
    """Layers whose outputs have exploded."""
    matrix = run.units("largest")
    if matrix is None or not _looked(matrix)[0]:
        return Check(missing=UNWATCHED)
    found = []
    for place, (name, numbers) in enumerate(matrix.layers()):
        size, first = _late(numbers), next((number for number in numbers if number), None)
        last = place == len(matrix.names) - 1
        if size is None or first is None or size < EXPLODING or (last and size < GREW * first):
            continue
        since = next(step for step, number in zip(matrix.steps, numbers) if number and number >= EXPLODING)
        what = f"The outputs of {name} have exploded."
        why = f"Their root mean square was {figure(first)} at first and is {figure(size)}, large since step {since:,}."
        move = "Lower the learning rate or warm up longer; a normalisation behind the layer holds its size."
        found.append(Finding(BAD, "large", name, what, why, move, "largest", (since, matrix.steps[-1])))
        break  # The first has made those behind it large.
    layers, looks = _looked(matrix)
    return Check(found, "" if found else f"The outputs of {layers} layers kept their size over {looks} looks.")
