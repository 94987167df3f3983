"""Recordings as a training leaves them, without one: healthy ones of any number of ranks, and faults put into them."""

import copy
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_so.recording.file import FORMAT, NAME, VERSION, write

Recording = dict[str, Any]
#: A small transformer; the names are those of its weights.
WEIGHTS = {
    "embed.weight": [256, 128],
    **{
        f"blocks.{n}.{name}": shape
        for n in range(2)
        for name, shape in (
            ("attn.qkv.weight", [384, 128]),
            ("attn.out.weight", [128, 128]),
            ("norm.weight", [128]),
            ("mlp.0.weight", [512, 128]),
            ("mlp.2.weight", [128, 512]),
        )
    },
    "head.weight": [256, 128],
}
UNITS = {
    f"blocks.{n}.{name}": width for n in range(2) for name, width in (("attn", 128), ("mlp.0", 512), ("mlp.2", 128))
}
MATRICES = [name for name, shape in WEIGHTS.items() if len(shape) == 2]
STAGES = {"observe": 0.05, "guard": 0.03, "act": 0.08, "finish": 0.07}
ENTERED = {"step": 50, "kind": "entered", "name": "", "text": "10 blocks go on in their basis"}
MEMORY = {"parameters": 1_900_000, "gradients": 1_900_000, "optimizer": 3_800_000}
CURVATURE = ({}, {"curvature": 5_200_000})
PLAN = "SOAP on AdamW: 10 of 12 parameters, 97.1 % of the elements\n  blocks.0.mlp.0.weight  512 x 128  SOAP, 2 sides"


def kept(steps: int, most: int = 1000) -> list[int]:
    """Steps of a whole run that are kept, thinned by doubling."""
    every = 1
    while steps / every > most:
        every *= 2
    return list(range(1, steps + 1, every))


def healthy(ranks: int = 1, steps: int = 400, seed: int = 0, *, method: str | None = "SOAP", sharded: bool = False,
            optimizer: str = "AdamW", shift: float = 0.0, names: Iterable[str] = ()) -> list[Recording]:  # fmt: skip
    """Recordings of a run in which all went well, one a rank.

    Args:
        ranks: How many.
        steps: Steps of the run.
        seed: Of its numbers.
        method: Which second order; None for none.
        sharded: Whether squared norms are of a rank's part.
        optimizer: The base.
        shift: Added to all losses.
        names: Names of weights, instead of the usual ones.
    """
    shared = random.Random(seed)
    weights = {name: [64, 64] for name in names} or WEIGHTS
    step_seconds = 0.02
    noise = [shared.gauss(0, 1) for _ in range(steps + 1)]
    loss = [0.0] + [shift + 1.6 + 4.0 * math.exp(-6 * s / steps) + 0.04 * noise[s] for s in range(1, steps + 1)]
    layers = _layers(steps, shared, weights, ranks if sharded else 1)
    found = []
    for rank in range(ranks):
        own = random.Random(f"{seed}/{rank}")
        rows = _rows(steps, own, loss, step_seconds, method, ranks if sharded else 1)
        last = list(range(max(1, steps - 999), steps + 1))
        found.append({
            "format": FORMAT, "version": VERSION, "run": f"{seed:016x}", "rank": rank, "ranks": ranks,
            "written": {"why": "end", "step": steps, "time": 1_764_400_000.0 + steps * step_seconds, "message": ""},
            "begun": {"time": 1_764_400_000.0, "step": 0},
            "facts": _facts(ranks, method, optimizer, sharded),
            "last": _columns(rows, last), "whole": _columns(rows, kept(steps)),
            "layers": copy.deepcopy(layers), "units": _units(steps, random.Random(seed)),
            **_time(steps, own, rank, ranks, step_seconds, method),
            "events": [dict(ENTERED)] if method else [],
            "spectra": _spectra(steps, random.Random(seed)) if rank == 0 else [],
            "memory": MEMORY | CURVATURE[bool(method)],
            "shadow": None,
        })  # fmt: skip
    return found


def _facts(ranks: int, method: str | None, optimizer: str, sharded: bool) -> dict[str, Any]:
    base = {"lr": 3e-3, "momentum": 0.0} if optimizer == "SGD" else {"lr": 3e-3, "betas": "(0.9, 0.95)"}
    settings = {optimizer: base}
    if method:
        settings |= {"SecondOrder": {"lag": 0, "max_overhead": 0.3}, method: {"period": 10, "start": 50}}
    return {
        "optimizer": optimizer, "method": method, "strategy": "DDPStrategy" if ranks > 1 else "SingleDeviceStrategy",
        "precision": "32-true", "device": "cpu", "accumulate": 1, "parameters": 475_000, "sharded": sharded,
        "plan": PLAN if method else None, "settings": settings,
        "versions": {"python": "3.11.2", "torch": "2.13.0", "lightning": "2.6.6", "lightning_so": "0.1.0"},
    }  # fmt: skip


def _rows(
    steps: int, own: random.Random, loss: list[float], step_seconds: float, method: str | None, parts: int
) -> list[dict]:
    rows, seconds = [{}], 0.0
    for step in range(1, steps + 1):
        wall = step_seconds * (1 + 0.05 * own.random())
        seconds += wall
        gradient = (1 + 2 * math.exp(-5 * step / steps)) ** 2 * (1 + 0.1 * own.random())
        row = {"step": step, "loss": loss[step] + 0.01 * own.gauss(0, 1), "seconds": seconds, "step_seconds": wall,
               "lr": 3e-3, "gradient": gradient / parts, "update": 1e-3 / parts if step % 16 == 0 else None,
               "device_memory": None}  # fmt: skip
        if method:
            row |= {"staleness_max": min(step, 12 + step % 5), "staleness_p95": min(step, 9 + step % 4),
                    "overhead": 0.18 + 0.04 * own.random(),
                    "drift": 0.3 / (1 + step // 50) if step % 5 == 0 else None,
                    "overhead_predicted": 0.21, "overhead_measured": 0.2, "rotated": 10 if step > 50 else 0,
                    "solves": 2 * step, "fallbacks": 0, "skipped": 0, "memory": 5_200_000}  # fmt: skip
        rows.append(row)
    return rows


def _columns(rows: Sequence[dict], steps: Iterable[int]) -> dict[str, list]:
    picked = [rows[step] for step in steps]
    return {name: [row.get(name) for row in picked] for name in rows[-1]}


def _layers(steps: int, shared: random.Random, weights: dict[str, list[int]], parts: int) -> dict[str, Any]:
    looks = kept(steps // 16, 200)
    found: dict[str, Any] = {
        "names": list(weights),
        "shapes": list(weights.values()),
        "step": [16 * look for look in looks],
    }
    matrices = {"weight": [], "update": [], "gradient": [], "dot": []}
    for look in looks:
        row = {name: [] for name in matrices}
        for place, shape in enumerate(weights.values()):
            weight = math.prod(shape) * 0.02**2 * (1 + look / len(looks))
            ratio = (
                2e-3
                * (1 + 0.3 * place / len(weights))
                * math.exp(-look / max(looks))
                * math.exp(0.2 * shared.gauss(0, 1))
            )
            gradient = 0.05 * math.exp(0.3 * shared.gauss(0, 1))
            update = weight * ratio**2
            row["weight"].append(weight / parts)
            row["update"].append(update / parts)
            row["gradient"].append(gradient / parts)
            row["dot"].append(-0.4 * math.sqrt(update * gradient) / parts)
        for name in matrices:
            matrices[name].append(row[name])
    return found | matrices


def _units(steps: int, shared: random.Random) -> dict[str, Any]:
    looks = kept(max(1, steps // 50), 200)
    kinds = {name: name.endswith("mlp.0") for name in UNITS}
    return {
        "names": list(UNITS), "width": list(UNITS.values()), "step": [50 * look for look in looks],
        "dead": [[0.02 + 0.02 * shared.random() if relu else None for relu in kinds.values()] for _ in looks],
        "saturated": [[None] * len(UNITS) for _ in looks],
        "rank": [[12 + 4 * shared.random() for _ in UNITS] for _ in looks],
        "largest": [[1.2 + 0.2 * shared.random() for _ in UNITS] for _ in looks],
    }  # fmt: skip


def _time(
    steps: int, own: random.Random, rank: int, ranks: int, step_seconds: float, method: str | None
) -> dict[str, Any]:
    spans, solved = [], []
    for step in range(max(1, steps - 400), steps + 1):
        begin = (step - 1 + 0.7) * step_seconds * 1.025
        for stage, share in STAGES.items() if method else ():
            spans.append([stage, step, begin, 0.8 * share * step_seconds * (1 + 0.05 * own.random()), 0])
            begin += 0.8 * share * step_seconds
        owner = step % ranks
        if method and step > 20:
            name = MATRICES[step // ranks % len(MATRICES)]
            seconds = 0.003 * (1 + 0.2 * own.random()) if owner == rank else None
            solved.append([step, owner, seconds, [name]])
            if seconds:
                spans.append(["solve", step, begin, seconds, 1])
        spans.append(["step", step, (step - 1) * step_seconds * 1.025, step_seconds * (1 + 0.05 * own.random()), 0])
    return {"spans": spans[-4000:], "solved": solved[-1000:]}


def _spectra(steps: int, shared: random.Random) -> list[dict[str, Any]]:
    found = []
    for step in range(100, steps + 1, max(100, steps // 20)):
        top = 40 + 60 * (1 - math.exp(-3 * step / steps)) + shared.gauss(0, 2)
        weights = [0.01, 0.1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.006, 0.004]
        values = sorted([-2.0, -0.5, 0.0, 0.4, 1.5, 4.0, 9.0, 20.0, 0.6 * top, top])
        found.append({"step": step, "values": values, "weights": weights,
                      "top": [top, 0.6 * top, 20.0], "bottom": -2.0, "trace": 900.0, "negative": 0.06, "lr": 3e-3,
                      "noise_scale": 300.0})  # fmt: skip
    return found


# ------------------------------------------------------------------ faults
def _rows_of(recordings: list[Recording]) -> Iterable[dict[str, list]]:
    for each in recordings:
        yield from (each["last"], each["whole"])


def lossy(recordings: list[Recording], change: Any) -> None:
    """Have `change(step, loss)` be the loss at every step."""
    for rows in _rows_of(recordings):
        rows["loss"] = [change(step, loss) for step, loss in zip(rows["step"], rows["loss"])]


def units(recordings: list[Recording], quantity: str, name: str, value: float) -> None:
    """Have a quantity of a layer's units be a value from a third of the run on."""
    for each in recordings:
        place = each["units"]["names"].index(name)
        rows = each["units"][quantity]
        for row in rows[len(rows) // 3 :]:
            row[place] = value


def freeze(recordings: list[Recording], name: str, *, gradient: float | None = None) -> None:
    """Have a weight not move."""
    for each in recordings:
        place = each["layers"]["names"].index(name)
        for quantity, value in (("update", 0.0), ("gradient", gradient), ("dot", None if gradient is None else 0.0)):
            for row in each["layers"][quantity]:
                row[place] = value


def event(recordings: list[Recording], step: int, kind: str, name: str, text: str) -> None:
    """Note something that happened, on all ranks."""
    for each in recordings:
        each["events"].append({"step": step, "kind": kind, "name": name, "text": text})


def column(recordings: Sequence[Recording], name: str, change: Any) -> None:
    """Have `change(step)` be a column."""
    for each in recordings:
        for rows in (each["last"], each["whole"]):
            rows[name] = [change(step) for step in rows["step"]]


def put(folder: Path, recordings: Sequence[Recording]) -> Path:
    """Write recordings to a run's folder, and give it back."""
    place = folder / "recording"
    place.mkdir(parents=True)
    for each in recordings:
        write(place / NAME.format(each["rank"]), each)
    return folder
