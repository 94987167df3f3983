"""Of the loss: not finite, diverged, risen for a while; and of gradients that grew with it."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from lightning_so.report.run import Number, Run
from lightning_so.report.verdict.finding import BAD, WARN, Check, Finding, figure
from lightning_so.report.verdict.levels import ends, spread
from lightning_so.report.verdict.spikes import excursions

#: Fewer losses have no level.
FEWEST = 20
#: Gradients are measured at some steps alone.
NORMS = 6
#: Part of a run over which its best is a level.
END = 0.05
#: A run has diverged where its end is above its beginning by this much of all that it had gained, and by so many
#: spreads of its losses; a run that has learnt nothing wanders within them.
LOST, FAR_OFF = 1.0, 8.0
#: Losses before a step that tell its level.
BEFORE = 40
#: A loss that is above the beginning by this share of it has exploded.
HALF = 0.5
#: A gradient has exploded where it grew by this factor.
GREW = 1e3
#: Scalers of 16 bits look for their scale by steps that they skip.
SCALED, SKIPS = "16-mixed", 0.01


def finite(run: Run) -> Check:
    """Whether every loss and gradient was finite."""
    steps, losses = run.column("loss")
    holes = _holes(steps, losses)
    told = [event["step"] for event in run.events if event["kind"] in ("nan", "skipped")]
    skipped = max(run.known("skipped")[1], default=0)
    first = min([*told, *holes], default=None)
    if first is None and not skipped:
        known = sum(loss is not None for loss in losses)
        if not known:
            return Check(missing="No loss was recorded: `training_step` gave none to Lightning.")
        return Check(good=f"All {known:,} losses that were kept are finite, and no step was skipped.")
    if not holes and not any(event["kind"] == "nan" for event in run.events) and _only_scaled(run, skipped):
        return Check(good=f"All losses were finite; {skipped:g} steps were left out while the scaler found its scale.")
    first = first if first is not None else steps[0]
    lost = bool(steps) and losses[-1] is None
    said = [f"first at step {first:,}"]
    said += [f"{len(holes):,} losses that were kept are not finite"] if holes else []
    said += [f"{skipped:g} steps were left out"] if skipped else []
    near = _before(steps, losses, first)
    said += [f"the losses before it were about {figure(median(near))}"] if near else []
    if near and _above(run, median(near[-3:])):
        what = "The loss exploded, and was not finite then"
        move = f"Lower the learning rate{_rate(run, first)}, warm up, or clip gradients"
    elif lost:
        what, move = "The loss is no longer finite, and stayed so to the end", "Go back to a checkpoint of before"
    else:
        what, move = "A loss or gradient was not finite", "The step was left out, and no weight took harm"
        if not skipped:
            move = "No step was left out: look whether weights took harm"
    where = f"step {first:,}"
    move += (
        f"; look at the batch of {where} (values that are not finite, empty or huge samples, a logarithm or quotient "
        "in the loss), then at the learning rate there."
    )
    severity = BAD if lost or not skipped else WARN
    return Check([Finding(severity, "nan", where, what + ".", "; ".join(said) + ".", move, "loss", (first, first))])


def _only_scaled(run: Run, skipped: float) -> bool:
    return SCALED in str(run.facts.get("precision")) and skipped <= max(5, SKIPS * run.length)


def _holes(steps: Sequence[int], losses: Sequence[Number]) -> list[int]:
    """Steps whose loss is not finite: those without one, where others have one."""
    known = [loss is not None for loss in losses]
    return [step for step, there in zip(steps, known) if not there] if any(known) else []


def _before(steps: Sequence[int], losses: Sequence[Number], step: int) -> list[float]:
    return [loss for at, loss in zip(steps, losses) if at < step and loss is not None][-BEFORE:]


def course(run: Run) -> Check:
    """Whether the loss fell, and stayed down."""
    steps, losses = run.known("loss")
    if len(losses) < FEWEST:
        return Check(missing=f"The course of the loss needs {FEWEST} losses; there are {len(losses)}.")
    few = max(3, int(END * len(losses)))
    begin, end = ends(losses)
    best = min(median(losses[i : i + few]) for i in range(0, len(losses) - few + 1, max(1, few // 2)))
    noise = spread([after - before for before, after in pairwise(losses)]) / 2**0.5
    if end - begin > max(LOST * (begin - best), FAR_OFF * noise, 0.05 * abs(begin)):
        return Check([_diverged(run, steps, losses, begin, best, end)])
    found = excursions(steps, losses)
    if found:
        return Check(found)
    fell = f"from {figure(begin)} to {figure(end)} over {steps[-1] - steps[0] + 1:,} steps"
    if begin - end > 3 * noise / few**0.5:
        return Check(good=f"The loss fell {fell}, and no part of the run stands above what was before it.")
    return Check(good=f"The loss went {fell}: it did not fall by more than its noise, and it did not rise.")


def _diverged(run: Run, steps: list[int], losses: list[float], begin: float, best: float, end: float) -> Finding:
    low = losses.index(min(losses))
    onset = next((i for i in range(len(losses) - 1, -1, -1) if losses[i] <= begin), low)
    step = steps[min(onset + 1, len(steps) - 1)]
    why = f"loss {figure(begin)} at the beginning, {figure(best)} at its best, {figure(end)} at the end"
    grown = _grown(run)
    why += f"; {grown}" if grown else ""
    return Finding(
        BAD, "diverged", f"from step {step:,}", "The loss ended above where it began: the run has diverged.", why + ".",
        f"Lower the learning rate to a third{_rate(run, step)} or warm up longer, and clip gradients; then look at the "
        "trust ratios: the layers that stand out first are those that move too far.", "loss", (step, steps[-1]),
    )  # fmt: skip


def _above(run: Run, loss: float) -> bool:
    """Whether a loss is clearly above those of the beginning."""
    known = run.known("loss")[1]
    begin = ends(known)[0] if len(known) >= FEWEST else loss
    return loss > begin + HALF * abs(begin)


def _rate(run: Run, step: int) -> str:
    """What the learning rate was at a step."""
    rate = next((rate for at, rate in reversed(list(zip(*run.known("lr")))) if at <= step), None)
    return f" (it was {figure(rate)} there)" if rate else ""


def _grown(run: Run) -> str:
    """Which layer's weights have grown most, for a run that diverged."""
    weights = run.layers.get("weight")
    if weights is None or len(weights.rows) < 2:
        return ""
    growth = {
        name: (last / first) ** 0.5
        for name, first, last in zip(weights.names, weights.rows[0], weights.rows[-1])
        if first and last
    }
    name = max(growth, key=growth.__getitem__, default="")
    return (
        f"the weights of {name} grew most, to {figure(growth[name])} times their norm"
        if name and growth[name] > 2
        else ""
    )


def gradient(run: Run) -> Check:
    """Whether gradients stayed of their size."""
    steps, squares = run.known("gradient")
    known = [(step, square**0.5) for step, square in zip(steps, squares)]
    if len(known) < NORMS:
        return Check(missing="No norms of gradients were recorded.")
    begin, end = ends([norm for _, norm in known])
    if begin and end > GREW * begin:
        step = next(step for step, norm in known if norm > GREW * begin)
        what = f"Gradients grew {figure(end / begin)} times."
        why = f"Their norm was {figure(begin)} at the beginning and {figure(end)} at the end."
        move = "Lower the learning rate, clip gradients (`Trainer(gradient_clip_val=1.0)`), and look at the loss."
        return Check(
            [Finding(BAD, "exploded", f"from step {step:,}", what, why, move, "gradient", (step, known[-1][0]))]
        )
    return Check(
        good=f"Gradients kept their size: a norm of {figure(begin)} at the beginning, {figure(end)} at the end."
    )
