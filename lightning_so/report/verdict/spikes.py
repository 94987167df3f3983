"""Of a loss that came back: single steps that spiked, and parts of the run that stood above what was before them."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from lightning_so.report.verdict.finding import NOTE, WARN, Finding, figure
from lightning_so.report.verdict.levels import Excursion, apart, smooth, steps_apart

#: Losses that are a level.
WINDOW = 40
#: A loss has left its level where it is above it by so many spreads of the window before, and by this share of the
#: level: mini-batches of usual trainings stay within 6 spreads, and the few that do not are heavy tails.
SPREADS, SHARE = 8.0, 0.3
#: Medians of so many losses tell smaller lifts, if they last: other data, or labels. Such a median has this share of
#: the noise of one loss, and the lift is many of its spreads.
SMOOTH, LONG, OF_MEDIAN, LIFTED, LIFT = 9, 15, 0.42, 5.0, 0.04
#: ... and where it loses this share of all that was gained before: losses that fall over orders of magnitude have last
#: ones that double and come back.
GAINED = 0.1
#: More spikes than this in a thousand losses are what the noise of this training is like.
USUAL = 3
#: A spike is farther above its level than any other loss by this factor: tails that are heavy make many that are far.
TAIL = 3.0
#: Places in a row that are no spike but another level.
LASTING = 5


def excursions(steps: Sequence[int], losses: Sequence[float]) -> list[Finding]:
    """Where a loss left its level.

    Args:
        steps: Of the losses.
        losses: All that are known, in order.

    Returns:
        Findings, in the order of the run.
    """
    window = min(WINDOW, len(losses) // 3)
    noise = [OF_MEDIAN * each for each in steps_apart(losses, 2 * window)]
    begin = median(losses[: max(3, window // 2)])
    lifted = _joined(apart(smooth(losses, SMOOTH), window, LIFTED, LIFT, noise))
    lifted = [part for part in lifted if _length(part) >= LONG and _lost(part, begin)]
    inside = {place for part in lifted for place in range(part.first - SMOOTH, part.last + SMOOTH + 1)}
    raw = [part for part in apart(losses, window, SPREADS, SHARE) if _lost(part, begin)]
    raw = [part for part in raw if not inside & {part.first, part.last}]
    lasting = [*lifted, *(part for part in raw if _length(part) >= LASTING)]
    spikes = [part for part in raw if _length(part) < LASTING]
    if len(spikes) > USUAL * max(1, len(losses) / 1000):
        what = "The loss spikes again and again: its noise has heavy tails."
        why = f"{len(spikes)} of {len(losses):,} losses that were kept left their level by {SPREADS:g} spreads or more."
        move = "Usual for small batches and losses over orders of magnitude; else clip gradients, or lower the rate."
        noisy = Finding(NOTE, "noisy", "the whole run", what, why, move, "loss")
        return [noisy, *(_finding(steps, part) for part in lasting)]
    usual = _usual(losses, raw, window)
    spikes = [part for part in spikes if part.top - part.before > TAIL * usual]
    return [_finding(steps, part) for part in sorted([*lasting, *spikes], key=lambda part: part.first)]


def _joined(parts: Sequence[Excursion]) -> list[Excursion]:
    """Parts, those as one that have next to nothing between them."""
    found = list[Excursion]()
    for part in parts:
        if found and part.first - found[-1].last <= LONG:
            before = found.pop()
            part = replace(before, last=part.last, top=max(before.top, part.top), back=part.back)
        found.append(part)
    return found


def _lost(part: Excursion, begin: float) -> bool:
    """Whether a part loses a share of what was gained from the beginning on."""
    return part.top - part.before >= GAINED * (begin - part.before)


def _length(part: Excursion) -> int:
    return part.last - part.first + 1


def _usual(losses: Sequence[float], parts: Sequence[Excursion], window: int) -> float:
    """How far above their level losses are that belong to no excursion, at the most."""
    outside = {place for part in parts for place in range(part.first, part.last + 1)}
    levels = smooth(losses, window)
    return max((loss - levels[place] for place, loss in enumerate(losses) if place not in outside), default=0.0)


def _finding(steps: Sequence[int], part: Excursion) -> Finding:
    first, last = steps[part.first], steps[part.last]
    where = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
    level = f"about {figure(part.top)}, after {figure(part.before)}"
    if not part.back and _length(part) >= LASTING:
        return Finding(
            WARN, "risen", f"from step {first:,}", "The loss rose and did not come back.", f"It stood at {level}.",
            "Go back to a checkpoint of before, and look at what changed there: the data, the learning rate.", "loss",
            (first, last),
        )  # fmt: skip
    if _length(part) >= LASTING:
        return Finding(
            WARN, "plateau", where, "The loss stood clearly above what was before it, and fell back.",
            f"{level}, for {last - first + 1:,} steps.",
            "Where it fell back as sharply as it rose, look at the data of these steps: labels, order, source. "
            "A jump that heals slowly is a step that went too far: lower the rate, or clip gradients.", "loss",
            (first, last),
        )  # fmt: skip
    return Finding(
        WARN, "spike", where, "The loss spiked, and came back.", f"It was {level}.",
        "Look at the batch of this step; if its samples are right, clip gradients.", "loss", (first, last),
    )  # fmt: skip
