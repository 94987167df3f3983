"""Kill and resume equals not having stopped, bit for bit.

    python -m benchmarks.resume.compare --kills 20 --seed 0 --ranks 1 2

A training through a real Trainer (`killable.py`: the byte transformer, small, in float32, 40 steps, saved at
every step) is killed with SIGKILL in a step, all ranks at once, started again from its last checkpoint, and compared
with one that was never stopped: the weights of every rank, and the last checkpoint with its moments, factors, bases,
schedule and counters. A third of the kills falls before the blocks begin to rotate, a third while they do, a third
after; the place in the step and the rank that comes there are drawn too. The exit status is 1 if anything differs.

Two ranks of plain DDP resume bit for bit. Three do not, with AdamW alone (6e-8 after 40 steps): `STRATEGIES` in
killable.py says why, and how more ranks are made comparable. `--methods adamw` is the control without SecondOrder.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.resume.killable import LAST, METHODS, PLACES, STEPS

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Kill:
    """In which step (from 1) and where in it a run dies; `rank` is the one whose arrival there kills all.

    Attributes:
        phase: Where the step lies: "before", "at" or "after" the switch to rotation; "-" where nothing rotates.
        fraction: The part of a step's time after which an "instant" comes.
    """

    step: int
    phase: str
    place: str
    rank: int
    fraction: float


@dataclass(frozen=True)
class End:
    """What a finished run leaves: every rank's weights, and the last checkpoint without its loops' bookkeeping."""

    weights: list[dict[str, Any]]
    rotating: dict[int, int]
    state: dict[str, Any]


def launch(folder: Path, method: str, ranks: int, kill: Kill | None = None) -> None:
    """One run of `benchmarks.resume.killable`; comes back when no process of it is left.

    Raises:
        RuntimeError: It did not end as it should.
        subprocess.TimeoutExpired: It hangs; it has been killed.
    """
    command = [sys.executable, "-m", "benchmarks.resume.killable", str(folder)]
    command += ["--method", method, "--ranks", str(ranks)]
    if kill is not None:
        command += ["--step", str(kill.step), "--place", kill.place, "--rank", str(kill.rank)]
        command += ["--fraction", str(kill.fraction)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as process:
        try:
            # Every rank holds the other end of the pipe: it closes when the last of them is gone.
            printed, _ = process.communicate(timeout=300)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    wanted = 0 if kill is None else -signal.SIGKILL
    if process.returncode != wanted:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}, not {wanted}:\n{printed[-3000:]}")


def end(folder: Path, ranks: int) -> End:
    """Read what a finished run left."""
    facts = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]
    checkpoint = torch.load(folder / LAST, weights_only=True)
    state = {key: checkpoint[key] for key in ("global_step", "optimizer_states", "lr_schedulers", "callbacks")}
    return End([each["weights"] for each in facts], facts[0]["rotating"], state)


def phases(rotating: dict[int, int]) -> dict[str, list[int]]:
    """The steps before, at and after the switch, by how many blocks rotate in each; all under "-" if none ever does.

    The first step is left out, which has no checkpoint to go on from, and the last, after which nothing is left to do.
    """
    steps = range(2, max(rotating))
    switch = [step for step in steps if rotating[step] != rotating[step - 1]]
    if not switch:
        return {"-": list(steps)}
    return {
        "before": [step for step in steps if step < switch[0]],
        "at": [step for step in steps if switch[0] <= step <= switch[-1]],
        "after": [step for step in steps if step > switch[-1]],
    }


def plan(rotating: dict[int, int], ranks: int, kills: int, seed: int) -> list[Kill]:
    """Draw the kills: phases and places take turns, so that each comes up; the rest is chance."""
    chance, steps = random.Random(seed), phases(rotating)
    names, places = list(steps), list(PLACES)
    chance.shuffle(places)
    drawn = []
    for i in range(kills):
        phase, place = names[i % len(names)], places[i % len(places)]
        drawn.append(Kill(chance.choice(steps[phase]), phase, place, chance.randrange(ranks), chance.random()))
    return drawn


def trials(method: str, ranks: int, kills: int, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """The run that is never stopped, once; then one killed and resumed run after the other: one record each.

    Raises:
        RuntimeError: A run did not end as it should, or did not go on from its checkpoint.
    """
    straight = folder / "straight"
    straight.mkdir()
    launch(straight, method, ranks)
    expected = end(straight, ranks)
    for number, kill in enumerate(plan(expected.rotating, ranks, kills, seed)):
        killed = folder / f"killed{number}"
        killed.mkdir()
        launch(killed, method, ranks, kill)
        last = torch.load(killed / LAST, weights_only=True)["global_step"]
        launch(killed, method, ranks)
        found = end(killed, ranks)
        if min(found.rotating) != last + 1:
            raise RuntimeError(f"{kill}: the checkpoint is of step {last}, training went on at {min(found.rotating)}.")
        weights, state = (different(getattr(expected, part), getattr(found, part)) for part in ("weights", "state"))
        yield {
            "ranks": ranks,
            "method": method,
            "steps": STEPS,
            **asdict(kill),
            "rotating": expected.rotating[kill.step],
            "resumed_after": last,
            "weights_equal": not weights,
            "state_equal": not state,
            "different": [*weights, *state][:20],
            "largest_difference": largest(expected.weights, found.weights),
        }
        shutil.rmtree(killed)


def different(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested structures differ; tensors bit for bit."""
    if type(a) is not type(b):
        return [f"{path}: {type(a).__name__}, {type(b).__name__}"]
    if isinstance(a, dict) and a.keys() == b.keys():
        return [where for key in a for where in different(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple) and len(a) == len(b):
        return [where for i, (x, y) in enumerate(zip(a, b, strict=True)) for where in different(x, y, f"{path}/{i}")]
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
    else:
        same = a == b
    return [] if same else [path]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor: -0 is not 0 here, and NaN is itself."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def largest(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> float:
    """The largest difference of a weight over all ranks; infinite if one is not finite."""
    pairs = [(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x]
    value = max(float((x - y).abs().max()) for x, y in pairs)
    return value if math.isfinite(value) else math.inf


def row(r: dict[str, Any]) -> dict[str, str]:
    """What the table says of a kill."""
    equal = "yes" if not r["different"] else f"NO, {r['largest_difference']:.1e}: {r['different'][0]}"
    return {
        "ranks": str(r["ranks"]),
        "method": r["method"],
        "kill step": str(r["step"]),
        "switch": r["phase"],
        "rotating": str(r["rotating"]),
        "place in the step": PLACES[r["place"]],
        "rank": str(r["rank"]),
        "resumed after": str(r["resumed_after"]),
        "equal": equal,
    }


def table(records: list[dict[str, Any]]) -> Table:
    """A row a kill."""
    rows = Table(*row(records[0]), title=f"killed and resumed against never stopped, {STEPS} steps")
    for r in records:
        rows.add_row(*row(r).values())
    return rows


def main() -> int:
    """Kill, resume, compare; print the table and a summary, append a JSON line a kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kills", type=int, default=20, help="of each method at each number of ranks")
    add("--seed", type=int, default=0)
    add("--ranks", type=int, nargs="+", default=[1, 2])
    add("--methods", choices=list(METHODS), nargs="+", default=["soap", "muon"])
    add("--out", type=Path, default=Path("benchmarks/resume/results/compare.jsonl"), help="lines are appended")
    args = parser.parse_args()

    records = []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        for ranks in args.ranks:
            for method in args.methods:
                with tempfile.TemporaryDirectory() as folder:
                    for r in trials(method, ranks, args.kills, args.seed, Path(folder)):
                        records.append(r)
                        facts = {"seed": args.seed, "torch": torch.__version__}
                        print(json.dumps({**facts, **r}), file=file, flush=True)
                        print(f"{method}, {ranks} ranks, step {r['step']}: {row(r)['equal']}", file=sys.stderr)
    Console(width=None if sys.stdout.isatty() else 140).print(table(records))
    equal = sum(not r["different"] for r in records)
    print(f"{equal} of {len(records)} resumed runs equal the one that was never stopped; results: {args.out}")
    return 0 if equal == len(records) else 1


if __name__ == "__main__":
    sys.exit(main())
