"""Of steps: those that are as long as the weights themselves."""

from statistics import median

from lightning_so.report.run import Run
from lightning_so.report.verdict.finding import BAD, NOTE, Check, Finding, figure
from lightning_so.report.verdict.levels import ends

#: A step of a weight is far where it is this part of the weight's own norm: healthy ones are a tenth of that at most,
#: but for single weights that begin at zero.
FAR = 0.25
#: Losses that have a level.
FEWEST = 20


def far(run: Run) -> Check:
    """Whether at any look half of the weights moved by about their own norm in one step."""
    ratios = run.trust_ratios()
    if ratios is None:
        return Check()
    looks = [(step, [value for value in row if value]) for step, row in zip(ratios.steps, ratios.rows)]
    of_step = [(step, median(known)) for step, known in looks if known]
    if not of_step:
        return Check()
    step, most = max(of_step, key=lambda each: each[1])
    if most <= FAR:
        return Check(good=f"Steps are short beside the weights: a median of {figure(most)} of their norm at most.")
    begin, end = _losses(run)
    fell = begin is not None and end is not None and end < begin - 0.05 * abs(begin)
    rate = next((rate for at, rate in zip(*run.known("lr")) if at >= step), None)
    why = f"At step {step:,} half of the weights moved by {figure(most)} of their norm or more"
    why += f"; the loss began at {figure(begin)} and ended at {figure(end)}." if begin is not None else "."
    what = "Single steps were as long as the weights: what was learnt before is gone after one."
    move = f"Lower the learning rate{f' ({figure(rate)} there)' if rate else ''} to a tenth, or warm it up."
    return Check([Finding(NOTE if fell else BAD, "far", f"step {step:,}", what, why, move, "trust", (step, step))])


def _losses(run: Run) -> tuple[float | None, float | None]:
    """The first loss, before any step, and the level at the end; None where they are not known."""
    known = run.known("loss")[1]
    return (known[0], ends(known)[1]) if len(known) >= FEWEST else (None, None)
