"""Of the outputs of layers: dead and saturated units, layers of few directions, outputs that explode."""

import math
from statistics import median

from lightning_so.report.run import Matrix, Run
from lightning_so.report.verdict.finding import BAD, WARN, Check, Finding, figure, listed

#: Looks that are the end of a run: its last quarter, and no fewer than this.
LATE, LOOKS = 4, 2
#: Share of a layer's units that is much: trained ReLU networks at usual rates lose up to a third of theirs, and half is
#: a layer of half the width. From `ALL` on next to nothing passes.
MUCH, ALL, WHOLE = 0.5, 0.9, 0.999
#: One direction holds more than four fifths of the variance of outputs.
FLAT = 1.5
#: Fewer units than this may well need no more than one direction; so may what comes from fewer inputs.
WIDE = 8
#: A layer is to blame for having few directions if what it reads has more than this times as many.
FROM = 2.0
#: Root mean square of outputs that is large, if it has also grown by this factor: half precision ends at 65,504.
HUGE, GREW = 1e3, 30.0

UNWATCHED = (
    "Outputs of layers were not looked at: the recorder looks at those of layers with an activation every 50 steps."
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


def dead(run: Run) -> Check:
    """Layers of which many units are zero for all samples."""
    matrix = run.units("dead")
    if matrix is None or not _looked(matrix)[0]:
        return Check(missing="No layer with units that can die (ReLU and the like) was looked at.")
    found = []
    for name, numbers in matrix.layers():
        share = _late(numbers)
        if share is None or share < MUCH:
            continue
        since = _since(matrix, numbers, MUCH)
        what = f"{share:.0%} of the units of {name} are dead: zero for every sample."
        why = f"{share:.1%} at the end, above {MUCH:.0%} since step {since:,}; {_looked(matrix)[1]} looks."
        stuck = _without_gradient(run) if share >= WHOLE else []
        why += f" No gradient passes: {listed(stuck)} did not move." if stuck else ""
        move = (
            "A bias far below zero or a rate that was too high has pushed them there: lower the rate or warm up, start "
            f"the bias of {name} at zero, or use GELU or LeakyReLU. Second order does not wake dead units."
        )
        severity = BAD if share >= ALL else WARN
        found.append(Finding(severity, "dead", name, what, why, move, "dead", (since, matrix.steps[-1])))
    layers, looks = _looked(matrix)
    most = max((_late(numbers) or 0.0 for _, numbers in matrix.layers()), default=0.0)
    good = f"No dead layer among {layers} over {looks} looks; the largest share of dead units at the end is {most:.0%}."
    return Check(found, "" if found else good)


def _without_gradient(run: Run) -> list[str]:
    """Layers whose last gradients were zero."""
    gradients = run.layers.get("gradient")
    return [name for name, numbers in gradients.layers() if not _late(numbers)] if gradients else []


def blocked(run: Run) -> bool:
    """Whether a layer is dead or saturated as a whole, so that no gradient reaches what comes before it."""
    matrices = [matrix for quantity in ("dead", "saturated") if (matrix := run.units(quantity)) is not None]
    return any((_late(numbers) or 0.0) >= WHOLE for matrix in matrices for _, numbers in matrix.layers())


def saturated(run: Run) -> Check:
    """Layers whose tanh or sigmoid is at its ends; the last one of a network may be, as a fitted classifier's is."""
    matrix = run.units("saturated")
    if matrix is None or not _looked(matrix)[0]:
        return Check(missing="No layer with units that can saturate (tanh, sigmoid) was looked at.")
    found = []
    for place, (name, numbers) in enumerate(matrix.layers()):
        share = _late(numbers)
        if share is None or share < MUCH or (place == len(matrix.names) - 1 and place and _late(numbers[:1] * 2) == 0):
            continue
        since = _since(matrix, numbers, MUCH)
        what = f"{share:.0%} of the units of {name} are saturated: at the ends of tanh or sigmoid."
        why = f"{share:.1%} at the end, above {MUCH:.0%} since step {since:,}; {_looked(matrix)[1]} looks."
        move = (
            f"Next to no gradient passes {name}. Start its weights smaller (Xavier: 1 / sqrt(fan in)), normalise what "
            "it reads, or lower the rate; decay of its weights brings them back."
        )
        severity = BAD if share >= ALL else WARN
        found.append(Finding(severity, "saturated", name, what, why, move, "saturated", (since, matrix.steps[-1])))
    layers, looks = _looked(matrix)
    most = max((_late(numbers) or 0.0 for _, numbers in matrix.layers()), default=0.0)
    good = f"No saturated layer among {layers} over {looks} looks; the largest share at the end is {most:.0%}."
    return Check(found, "" if found else good)


def collapsed(run: Run) -> Check:
    """Layers whose outputs lie along few directions, though what they read does not: the first of each chain."""
    matrix = run.units("rank")
    if matrix is None or not _looked(matrix)[0]:
        return Check(missing="No effective rank of outputs was recorded.")
    widths = dict(zip(matrix.names, _widths(run)))
    shapes = (run.first.get("layers") or {}).get("shapes") or []
    narrow = bool(shapes) and math.prod(shapes[0][1:]) < WIDE
    few_answers = bool(shapes) and shapes[-1][0] <= 2
    late = {name: _late(numbers) for name, numbers in matrix.layers()}
    names = [name for name in matrix.names if late[name] is not None]
    found = []
    for place, name in enumerate(names):
        rank = late[name] or 0.0
        before = late[names[place - 1]] if place else (None if narrow else math.inf)
        # What is told apart in two classes, or is one number, needs one direction in the end.
        last = few_answers and place >= len(names) - 2
        if rank >= FLAT or widths.get(name, WIDE) < WIDE or last or not before or before < FROM * rank:
            continue
        reads = "" if before == math.inf else f", and what comes before it has {figure(before)}"
        what = f"The outputs of {name} lie along next to one direction."
        why = f"An effective rank of {figure(rank)} of {widths.get(name, 0)} units at the end{reads}."
        move = (
            f"All that comes after {name} sees one number a sample: start its weights anew (orthogonal), look for a "
            "normalisation or a skip connection that is missing, and for a rate that is too high."
        )
        found.append(Finding(WARN, "collapsed", name, what, why, move, "rank", (matrix.steps[0], matrix.steps[-1])))
    layers, looks = _looked(matrix)
    least = min((late[name] or 0.0 for name in names), default=0.0)
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
    for name, numbers in matrix.layers():
        size, first = _late(numbers), next((number for number in numbers if number), None)
        if size is None or first is None or size < HUGE or size < GREW * first:
            continue
        since = next(step for step, number in zip(matrix.steps, numbers) if number and number >= GREW * first)
        what = f"The outputs of {name} have exploded."
        why = f"Their root mean square grew from {figure(first)} to {figure(size)}, most of it since step {since:,}."
        move = "Lower the learning rate or warm up longer; a normalisation behind the layer holds its size."
        found.append(Finding(BAD, "large", name, what, why, move, "largest", (since, matrix.steps[-1])))
        break  # The first has made those behind it large.
    layers, looks = _looked(matrix)
    return Check(found, "" if found else f"The outputs of {layers} layers kept their size over {looks} looks.")
