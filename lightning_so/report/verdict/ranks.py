"""Of ranks: those that are missing, and those that the others wait for."""

from statistics import median

from lightning_so.report.run import Run
from lightning_so.report.verdict.finding import NOTE, WARN, Check, Finding, figure, listed

#: A rank is slow in a stage where its median is above that of the others by this factor: scheduling makes 1.2.
SLOW = 1.5
#: ... and where that costs this share of a step.
SHARE = 0.05
#: Spans of a stage that a median needs.
FEWEST = 10
#: Stages in which the ranks that are done wait for the others: the slow rank is short in them.
WAITING = ("guard", "wait", "exchange")


def missing(run: Run) -> Check:
    """Ranks without a recording."""
    if not run.missing:
        return Check(good=f"Recordings of all {run.ranks} ranks are there." if run.ranks > 1 else "")
    names = listed([str(rank) for rank in run.missing], most=12)
    what = f"Of {run.ranks} ranks {len(run.missing)} left no recording here."
    move = (
        "Copy their files into the same folder; else look at how these ranks ended. All that follows is of the others."
    )
    return Check([Finding(WARN, "missing", f"ranks {names}", what, f"Missing: {names}.", move)])


def stages(run: Run) -> dict[str, dict[int, list[float]]]:
    """Seconds of each stage a step, by rank; solves by their number, as which ranks have how many is the schedule's."""
    found = dict[str, dict[int, dict[int, float]]]()
    for each in run.recordings:
        for stage, step, _, seconds, count in each.get("spans") or ():
            if seconds is not None:
                of_rank = found.setdefault(stage, {}).setdefault(each["rank"], {})
                of_rank[step] = of_rank.get(step, 0.0) + seconds / max(1, count)
    return {stage: {rank: list(of.values()) for rank, of in ranks.items()} for stage, ranks in found.items()}


def slow(run: Run) -> Check:
    """Ranks that took longer than the others for the same."""
    if len(run.recordings) < 2:
        return Check()
    known = stages(run)
    usual = median([median(values) for values in known.get("step", {}).values()] or [0.0])
    found, looked = list[Finding](), list[str]()
    for stage, ranks in known.items():
        medians = {rank: median(values) for rank, values in ranks.items() if len(values) >= FEWEST}
        if stage in WAITING or len(medians) < 2:
            continue
        looked.append(stage)
        rank = max(medians, key=medians.__getitem__)
        others = median([value for other, value in medians.items() if other != rank])
        extra = medians[rank] - others
        if medians[rank] > SLOW * others and extra > SHARE * usual:
            said = "a solve" if stage == "solve" else f"the stage {stage!r}" if stage != "step" else "a step"
            what = (
                f"Rank {rank} is slow: {said} takes it {figure(medians[rank] / others)} times what it takes the others."
            )
            why = f"Medians: {figure(1e3 * medians[rank])} ms there, {figure(1e3 * others)} ms on the others."
            move = "Look at its machine: another process, a hot device, its disk. `lightning-so doctor` on it."
            found.append(Finding(WARN, "slow", f"rank {rank}", what, why, move, "gantt"))
    if found:
        return Check(found[:1] + [each for each in found[1:] if each.where != found[0].where])
    if not looked:
        return Check(missing="No stages were timed: which rank was slow is not known.")
    return Check(good=f"No rank was slow in {listed(looked, 6)}.")


def ended(run: Run) -> Check:
    """How the run ended."""
    why, message = run.written.get("why"), str(run.written.get("message") or "").strip()
    step = run.written.get("step") or 0
    where = f"step {step:,}"
    if why == "exception":
        said = message.splitlines()[-1] if message else "its text was not kept"
        what = f"An exception ended the run at {where}."
        move = "The traceback is in the training's own output."
        return Check([Finding("bad", "exception", where, what, said, move, "events", (step, step))])
    if why == "sigterm":
        what = f"A signal ended the run at {where}."
        move = "Usual on a cluster; `Restartable` saves and goes on."
        return Check([Finding(NOTE, "sigterm", where, what, message or "SIGTERM.", move, "events", (step, step))])
    if why == "end":
        return Check(good=f"The run came to its end, after {run.length:,} steps.")
    return Check(good=f"The last recording is of {where}, written as {why}: the run went on, or was killed, after it.")
