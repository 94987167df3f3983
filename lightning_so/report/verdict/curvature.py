"""Of second order: what it cost, how old its bases are, what fell back, and the edge of stability."""

import re
from collections import Counter
from statistics import median
from typing import Any

from lightning_so.report.run import Run
from lightning_so.report.verdict.finding import NOTE, WARN, Check, Finding, figure, listed

#: A budget is exceeded where this factor of it was taken, over the second half of the run.
OVER = 1.25
#: Share of the time beyond which a budget is worth a thought.
HALF = 0.5
#: A basis is stale where its age is above so many times the usual age at the same run, and this many steps.
OLD, STEPS = 10.0, 200
#: Share of solves that may go on by safer means.
FALLS = 0.01
#: Rate times the largest eigenvalue, over what plain descent bears: training hovers at 1 by itself (Cohen et al. 2021).
EDGE, LOOKS = 1.25, 3
#: Kinds of events of a block that left its basis, and of one that came back.
LEFT, BACK = ("cooled", "reverted"), ("entered", "promoted")


def _half(run: Run, name: str) -> list[float]:
    """The known numbers of a column's second half."""
    numbers = run.known(name)[1]
    return numbers[len(numbers) // 2 :]


def bound(run: Run) -> float | None:
    """The share of the time that was granted, `max_overhead`."""
    value = (run.facts.get("settings") or {}).get("SecondOrder", {}).get("max_overhead")
    if isinstance(value, str):
        value = next(iter(re.findall(r"\d*\.\d+|\d+", value)), None)
    return float(value) if value is not None else None


def budget(run: Run) -> Check:
    """Whether second order took more than it was granted."""
    if not run.facts.get("method"):
        return Check()
    measured = _half(run, "overhead_measured") or _half(run, "overhead")
    if not measured:
        return Check(missing="What second order took of the time was not recorded.")
    share, granted = median(measured), bound(run)
    if granted is not None and share > OVER * granted:
        what = "Second order took more of the time than it was granted."
        why = f"{share:.0%} against max_overhead={granted:g}, the median of the second half of the run."
        move = (
            "The least that it can take is observing and acting at every step: larger batches, Muon, or fewer rows; "
            "`Overhead(..., strict=True)` refuses at the start what cannot be kept."
        )
        return Check([Finding(WARN, "budget", "the whole run", what, why, move, "overhead")])
    if granted is None and share > HALF:
        what = f"Second order took {share:.0%} of the time."
        move = "If that is more than the steps that it saves, set a share: SecondOrder(max_overhead=0.2)."
        why = "The median of the second half of the run; on a small model this is usual."
        return Check([Finding(NOTE, "overhead", "the whole run", what, why, move, "overhead")])
    said = f" of max_overhead={granted:g}" if granted is not None else ""
    return Check(good=f"Second order took {share:.0%}{said} of the time.")


def stale(run: Run) -> Check:
    """Whether a basis was left to age."""
    steps, oldest = run.known("staleness_max")
    usual = _half(run, "staleness_p95")
    if not steps:
        return Check()
    step, age = steps[-1], oldest[-1]
    limit = max(OLD * median(usual) if usual else 0.0, STEPS)
    if usual and age > limit:
        what = "The basis of a block was not renewed."
        why = f"The oldest is {age:,.0f} steps old at the end; 95 % are younger than {figure(median(usual))}."
        move = "Look at the fallbacks and failures below: a block whose solves keep failing keeps its last basis."
        return Check([Finding(WARN, "stale", f"step {step:,}", what, why, move, "staleness", (step, step))])
    return Check(good=f"Bases stayed fresh: the oldest is {age:,.0f} steps old at the end.")


def fallbacks(run: Run) -> Check:
    """Whether solves went on by safer means, or failed."""
    if not run.facts.get("method"):
        return Check()
    fell = max(run.known("fallbacks")[1], default=0)
    solves = max(run.known("solves")[1], default=0)
    events = [event for event in run.events if event["kind"] in ("fallback", "failure")]
    if not fell and not events:
        return Check(good=f"None of {solves:,.0f} solves fell back or failed." if solves else "")
    blocks = [name for name, _ in Counter(event["name"] for event in events if event["name"]).most_common()]
    failed = any(event["kind"] == "failure" for event in events)
    severity = WARN if failed or (solves and fell > FALLS * solves) else NOTE
    what = "Solves failed, and kept the last basis." if failed else "Solves fell back to safer means."
    why = f"{max(fell, len(events)):,.0f} of {solves:,.0f} solves" + (f", of {listed(blocks)}" if blocks else "") + "."
    move = "A larger damping or ridge, or factors in fp32, or leave these blocks to the base: route={'base': [...]}."
    first = events[0]["step"] if events else 0
    where = listed(blocks) if blocks else f"from step {first:,}"
    return Check([Finding(severity, "fallback", where, what, why, move, "events", (first, first))])


def left(run: Run) -> Check:
    """Blocks that went back to the optimizer's own update, and whether they came back."""
    found = []
    for name, events in _by_block(run).items():
        out = [event for event in events if event["kind"] in LEFT]
        if not out:
            continue
        last = out[-1]
        back = next((event for event in events if event["kind"] in BACK and event["step"] > last["step"]), None)
        what = f"{name or 'A block'} went back to the optimizer's own update at step {last['step']:,}"
        what += f", and came back at step {back['step']:,}." if back else ", and has not come back."
        move = "Nothing, as it came back." if back else "Leave it to the base, or raise its damping, if this goes on."
        severity, times = (NOTE if back else WARN), f", {len(out)} times" if len(out) > 1 else ""
        why = f"{last['text'] or last['kind']}{times}."
        found.append(Finding(severity, "left", name, what, why, move, "events", (out[0]["step"], last["step"])))
    return Check(found)


def _by_block(run: Run) -> dict[str, list[dict[str, Any]]]:
    found = dict[str, list[dict[str, Any]]]()
    for event in run.events:
        if event["kind"] in LEFT + BACK:
            found.setdefault(event["name"], []).append(event)
    return found


def shadow(run: Run) -> Check:
    """What a method in the shadow would have brought."""
    return Check(good=str((run.shadow or {}).get("text") or ""))


def edge(run: Run) -> Check:
    """Whether the largest eigenvalue is above what plain gradient descent bears."""
    looks = [look for look in run.spectra if look.get("top") and look["top"][0] is not None and look.get("lr")]
    if not looks:
        return Check(missing="The spectrum was not looked at: CurvatureMonitor(every=100) among the callbacks does.")
    if "SGD" not in str(run.facts.get("optimizer")) or run.facts.get("method"):
        top = looks[-1]["top"][0]
        return Check(
            good=f"The largest eigenvalue at the end is {figure(top)}, of {len(looks)} looks (its edge is SGD's)."
        )
    momentum = (run.facts.get("settings") or {}).get("SGD", {}).get("momentum") or 0.0
    # Of x <- x - lr v, v <- m v + g on a parabola: stable below 2 (1 + m) / lr.
    shares = [look["lr"] * look["top"][0] / (2 * (1 + float(momentum))) for look in looks]
    late = median(shares[-max(LOOKS, len(shares) // 4) :])
    if len(shares) >= LOOKS and late > EDGE:
        what = "The largest eigenvalue is above what this learning rate bears."
        limit = 2 * (1 + float(momentum))
        why = f"Rate times lambda is {figure(limit * late)} at the end; {figure(limit)} is the edge."
        move = f"Lower the rate to {figure(looks[-1]['lr'] / late)}, warm up longer, or SharpnessGuard, which does it."
        return Check([Finding(WARN, "sharp", f"step {looks[-1]['step']:,}", what, why, move, "sharpness")])
    return Check(good=f"The largest eigenvalue is {late:.0%} of what the learning rate bears, over {len(looks)} looks.")
