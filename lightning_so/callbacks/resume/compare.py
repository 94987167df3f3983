"""What two runs saw and have, compared: weights, plans, counts, and where they part."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_so.callbacks.resume.fingerprint import raw
from lightning_so.callbacks.resume.verdict import Cause, Reason, Weights

#: What each rank of a run has noted.
Notes = list[dict[str, Any]]
#: Counts that hang on rounding or on the number of ranks: compared in the same world only.
LOCAL = ("undone", "withheld", "retries", "failures", "cooled", "verified", "deviation")

PLAIN_LOADER = (
    "Lightning puts a loader back to its place only if it has state_dict and load_state_dict, such as torchdata's "
    "StatefulDataLoader. Use one, or stop at the end of an epoch; to check everything but the data's place: "
    "limit_train_batches={stop}, limit_val_batches=0."
)
DRAWN = (
    "Checkpoints hold no random state: draw order and noise of the data from a generator that is seeded by the number "
    "of the epoch, or save its state with the checkpoint."
)


def compare_weights(whole: Mapping[str, Tensor], resumed: Mapping[str, Tensor]) -> Weights:
    """Final weights of two runs.

    Args:
        whole: Tensors by full name.
        resumed: The other run's.

    Returns:
        What differs, bit for bit and in numbers.

    Example:
        >>> compare_weights({"a": torch.ones(2)}, {"a": torch.tensor([1.0, 1.5])}).largest
        0.5
    """
    names = list(dict.fromkeys([*whole, *resumed]))
    gaps = {name: gap for name in names if (gap := _gap(whole.get(name), resumed.get(name))) is not None}
    worst = max(gaps, key=lambda name: gaps[name]) if gaps else None
    elements = sum(value.numel() for value in whole.values())
    return Weights(len(names), elements, tuple(gaps), gaps[worst] if worst else 0.0, worst)


def _gap(a: Tensor | None, b: Tensor | None) -> float | None:
    """The largest difference of two tensors; None if they are the same bit for bit."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if raw(a) == raw(b):
        return None
    wide = torch.complex128 if a.is_complex() else torch.float64
    gap = float((a.to(wide) - b.to(wide)).abs().max())
    return gap if math.isfinite(gap) else math.inf


def compare_work(whole: Notes, resumed: Notes) -> tuple[str, ...]:
    """Where plans and counts of `SecondOrder` differ, in words."""
    a, b = whole[0], resumed[0]
    if len(a["plans"]) != len(b["plans"]):
        return (f"SecondOrder: {len(a['plans'])} optimizer(s) without a stop, {len(b['plans'])} in the resumed run",)
    same_world = _world(a) == _world(b)
    found = []
    for first, second in zip(a["plans"], b["plans"], strict=True):
        odd = [f"{x!r}, resumed {y!r}" for x, y in zip(first, second) if x != y]
        if odd or len(first) != len(second):
            found.append(f"plan: {odd[0] if odd else f'{len(first) - 1} parameters, resumed {len(second) - 1}'}")
    for first, second in zip(a["counts"], b["counts"], strict=True):
        names = [name for name in first if first[name] != second[name] and (same_world or name not in LOCAL)]
        if names:
            found.append("counts: " + ", ".join(f"{name} {first[name]}, resumed {second[name]}" for name in names))
    return tuple(found)


def reasons(whole: Notes, stopped: Notes, resumed: Notes, stop: int) -> tuple[Reason, ...]:
    """What a difference of the final weights comes from, as far as the notes tell.

    Args:
        whole: Of the run without a stop.
        stopped: Of the run that made the checkpoint.
        resumed: Of the run that went on from it.
        stop: Steps before the stop.

    Returns:
        One or more; all that is known are listed, a lost state only where nothing else explains it.
    """
    if whole[0]["marked"] != stopped[0]["marked"]:
        data = _first(whole, stopped, _rows)
        why = "their batches differ" if data is not None else "their batches are the same"
        text = (
            f"the weights after step {stop}, before any stop, are not the same in two runs with one seed; {why}. "
            "Nothing that is said of resuming holds before that: deterministic=True, seeds for loaders and workers."
        )
        return (Reason(Cause.REPEAT, text),)
    found = [_data(whole, resumed, stop), _random(whole, resumed), *_known_state(whole, stopped, resumed)]
    known = tuple(reason for reason in found if reason is not None)
    if known:
        return known
    if _world(whole[0]) != _world(resumed[0]):
        text = (
            "batches, learning rates and the weights at the stop are the same; sums over ranks or micro-batches round "
            "in another order. Say how much of that is allowed (tolerance); more than that is a state that was lost."
        )
        return (Reason(Cause.WORLD, text),)
    text = (
        "batches, random numbers, learning rates and the weights at the stop are the same; what is left is the state "
        "of the optimizer, of callbacks or of the module: what it keeps outside parameters and buffers belongs into "
        "its on_save_checkpoint."
    )
    return (Reason(Cause.STATE, text),)


def _world(notes: dict[str, Any]) -> tuple[int, str, int]:
    """What sets the order of sums: ranks, strategy, micro-batches of a step."""
    return notes["ranks"], notes["strategy"], notes["steps"][max(notes["steps"])]["batches"]


def _rows(notes: Notes, step: int) -> set[str]:
    """All ranks' rows of a step: a set, since ranks may share a batch that each takes its part of."""
    return {row for rank in notes for row in rank["steps"].get(step, {"rows": ()})["rows"]}


def _first(a: Notes, b: Notes, what: Any) -> int | None:
    """The first step of both runs at which something differs."""
    steps = sorted(set(a[0]["steps"]) & set(b[0]["steps"]))
    return next((step for step in steps if what(a, step) != what(b, step)), None)


def _data(whole: Notes, resumed: Notes, stop: int) -> Reason | None:
    step = _first(whole, resumed, _rows)
    if step is None:
        return None
    here, there = _rows(whole, step), _rows(resumed, step)
    earlier = [other for other in whole[0]["steps"] if other != step and _rows(whole, other) == there]
    if earlier and whole[0]["steps"][step]["place"]:
        text = f"at step {step + 1} the resumed run saw the batch of step {earlier[0] + 1}. "
        return Reason(Cause.DATA, text + PLAIN_LOADER.format(stop=stop))
    again = f" (those of step {earlier[0] + 1})" if earlier else ""
    text = f"at step {step + 1} the run without a stop saw {len(here)} rows, the resumed one {len(there)}{again}"
    if len(here) != len(there):
        return Reason(Cause.DATA, text + ", all ranks together: change its batch size or accumulate_grad_batches.")
    text += f", {len(here & there)} of them in both. "
    if whole[0]["ranks"] != resumed[0]["ranks"]:
        text += "Lightning's own sampler for several ranks shuffles: bring one (use_distributed_sampler=False). "
    # At the beginning of an epoch nothing had to be put back to its place: the order was drawn anew.
    return Reason(Cause.DATA, text + DRAWN)


def _random(whole: Notes, resumed: Notes) -> Reason | None:
    """Steps that draw, from another state."""

    def drawn(notes: Notes, step: int) -> dict[str, str]:
        facts = notes[0]["steps"][step]
        return {name: facts["random"][name] for name in facts["drawn"] if name in facts["random"]}

    step = _first(whole, resumed, drawn)
    if step is None:
        return None
    names = " and ".join(sorted({*drawn(whole, step), *drawn(resumed, step)}))
    return Reason(
        Cause.RANDOM,
        f"step {step + 1} draws from the generator of {names} (dropout, noise), whose state is another in the resumed "
        "run: checkpoints do not hold it. Save it in a callback and set it again before the first batch.",
    )


def _known_state(whole: Notes, stopped: Notes, resumed: Notes) -> list[Reason | None]:
    """States that are seen to be lost."""
    found: list[Reason | None] = []
    before, after = stopped[0]["marked"], resumed[0]["start"]
    lost = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    if lost:
        text = f"{len(lost)} tensors are not what was saved when the resumed run starts, the first is {lost[0]}."
        found.append(Reason(Cause.STATE, text))
    step = _first(whole, resumed, lambda notes, at: notes[0]["steps"][at]["rates"])
    if step is not None:
        rates = [notes[0]["steps"][step]["rates"] for notes in (whole, resumed)]
        text = f"at step {step + 1} the learning rates are {rates[0]}, in the resumed run {rates[1]}."
        found.append(Reason(Cause.STATE, text))
    a, b = (len(notes[0]["plans"]) for notes in (whole, resumed))
    if a != b:
        who = "the resumed run" if a > b else "the run without a stop"
        found.append(Reason(Cause.STATE, f"{who} has no SecondOrder, whose state is in the checkpoint: add it."))
    kinds = [kind for kind in resumed[0]["kinds"] + stopped[0]["kinds"] if kind != "full"]
    if kinds:
        text = f"SecondOrder(state={kinds[0]!r}) leaves out what an exact resumption needs: use state='full'."
        found.append(Reason(Cause.STATE, text))
    return found
