"""Of weights: those that do not move while others do."""

from statistics import median

from lightning_so.report.run import Run
from lightning_so.report.verdict import units
from lightning_so.report.verdict.finding import WARN, Check, Finding, figure

#: Looks that are needed to say that a weight does not move.
LOOKS = 2
#: Of the looks, the part at the end over which it did not.
PART = 0.5


def frozen(run: Run) -> Check:
    """Weights that did not move in the second half of the run, while others did."""
    # Recorded weights are all to be trained: one that is frozen on purpose (`requires_grad_(False)`) is none of them.
    ratios = run.trust_ratios()
    if ratios is None:
        return Check(missing="No updates of single layers were recorded.")
    moving = [row for row in ratios.rows if any(row)]
    tail = moving[-max(LOOKS, int(PART * len(moving))) :]
    if len(tail) < LOOKS:
        return Check(missing=f"Whether layers move needs {LOOKS} looks at their updates; there are {len(moving)}.")
    columns = dict(zip(ratios.names, zip(*tail)))
    still = [name for name, values in columns.items() if not any(values) and any(value == 0 for value in values)]
    others = [value for name, values in columns.items() if name not in still for value in values if value]
    good = f"Each of {len(columns)} weights moved, at a median of {figure(median(others))} of its norm a step."
    if not still:
        return Check(good=good)
    blocked = units.blocked(run)
    gradients = dict(run.layers["gradient"].layers())
    found = []
    for name in still:
        silent = not any(gradients[name][-len(tail) :])
        if silent and blocked:
            continue  # No gradient passes the layer that is dead, which is said of that one.
        found.append(_frozen(name, silent, len(tail), median(others), ratios.steps[0], ratios.steps[-1]))
    return Check(found, "" if found else good.replace("Each", f"{len(columns) - len(still)}"))


def _frozen(name: str, silent: bool, looks: int, usual: float, first: int, last: int) -> Finding:
    if silent:
        what = f"{name} does not move: no gradient reaches it."
        move = (
            f"Look whether the loss depends on {name} (a `detach()`, `no_grad`, a branch that is never taken). If it "
            "is not meant to be trained, say so: `requires_grad_(False)`."
        )
    else:
        what = f"{name} does not move, though it has a gradient."
        move = f"Look whether {name} is in a group of the optimizer in `configure_optimizers`, and that group's rate."
    why = f"Its update was exactly zero at {looks} looks; others moved by {figure(usual)} of their norm a step."
    return Finding(WARN, "frozen", name, what, why, move, "trust", (first, last))
