"""How long ranks solve where one is at half the speed, with equal shares and with `balance=True`.

    python -m benchmarks.steps.unequal --ranks 2 4

Gloo ranks with one thread each train the byte language model on strided parts of the same global batches. The last rank
is at half the speed of the others, in one of three ways:

- `counted`, the default: the seconds of its process count twice. Seconds are those of each rank's process, as in
  `ddp.py`: those that pass say little where ranks share cores with each other and with whatever else runs.
- `sleep`: after each of its solves it sleeps for as long as the solve has taken. Seconds are those that pass.
- `cgroup`: its whole process has half a core, by the quota of a control group (version 1; wants root, and a core a
  rank). Seconds are those that pass.

They are of each rank's own solves, waiting for others left out, over the last whole intervals of the schedule.
`slowest/mean` is the largest of them over their mean. `weights` is the largest difference of a weight from the run with
equal shares, over the largest weight.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from benchmarks.shared.methods import METHODS, Settings, build
from benchmarks.shared.problems import PROBLEMS, load
from benchmarks.shared.table import append, headed, machine, show
from lightning_so.core import engine as engines
from lightning_so.core.overhead.clock import Clock, WallClock

GROUPS, PERIOD = Path("/sys/fs/cgroup/cpu"), 10_000
#: Who is slowed, and whether shares follow.
CASES = {"equal ranks, balance": (False, True), "half, equal shares": (True, False), "half, balance": (True, True)}


@dataclass
class Track:
    """What one rank measured.

    Attributes:
        seconds_S: Seconds in its solves at each step.
        solved_S: Units that it has solved at each step.
        told: What the balance has said.
        moved: Units that went to another rank.
        interval: The schedule's largest interval.
        loss: At the last step, of its part of the batch.
        weights: At the end.
    """

    seconds_S: list[float]
    solved_S: list[int]
    told: list[str]
    moved: int
    interval: int
    loss: float
    weights: dict[str, torch.Tensor]


class Counted(Clock):
    """Seconds of this process, some of which count twice."""

    def __init__(self, times: int) -> None:
        """How often they count."""
        self.device, self._times = "counted", times

    def moment(self) -> float:
        """See `Clock.moment`."""
        return self._times * time.process_time()


class Solves:
    """The engine's solves, timed, and as slow as is asked for."""

    def __init__(self, clock: Clock, *, asleep: bool) -> None:
        """Nothing has been solved."""
        self.seconds, self._clock, self._asleep, self._solve = 0.0, clock, asleep, engines.solve

    def __call__(self, units: Any, numbers: list[int], rung: Any) -> Any:
        """Solve, and sleep as long."""
        begin, now = self._clock.moment(), time.perf_counter()
        found = self._solve(units, numbers, rung)
        if self._asleep:
            time.sleep(time.perf_counter() - now)
        self.seconds += self._clock.moment() - begin
        return found


@contextmanager
def half_a_core() -> Iterator[None]:
    """Have this process be in a control group that has half a core."""
    group = GROUPS / f"unequal-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_period_us").write_text(str(PERIOD))
        (group / "cpu.cfs_quota_us").write_text(str(PERIOD // 2))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (GROUPS / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def measure(rank: int, ranks: int, meeting: str, args: argparse.Namespace, method: str, case: str) -> Track:
    """One rank's track."""
    half, balance = CASES[case]
    slow = half and rank == ranks - 1
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=timedelta(minutes=5)
    )
    problem = load(args.problem)
    model = problem.model(0)
    settings = Settings(args.lr, steps=args.steps, options=(("balance", balance), ("period", args.period)))
    contender, wrapped, told = build(method, model, settings), DDP(model), list[str]()
    engine = contender.engine
    engine.tell = lambda line: told.append(str(line))
    clock = Counted(2 if slow else 1) if args.throttle == "counted" else WallClock()
    if engine.parts.balance is not None:
        engine.parts.balance.times.clock = clock
    solves, generator = Solves(clock, asleep=slow and args.throttle == "sleep"), torch.Generator().manual_seed(0)
    seconds, solved, value = [], [], 0.0
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(engines, "solve", solves))
        if slow and args.throttle == "cgroup":
            stack.enter_context(half_a_core())
        for _ in range(args.steps):
            inputs, targets = problem.batch(generator)
            for optimizer in contender.optimizers:
                optimizer.zero_grad()
            loss = problem.loss(wrapped, (inputs[rank::ranks], targets[rank::ranks]))
            contender.observe(loss)
            loss.backward()
            before = solves.seconds, engine.report.solved_here
            contender.step()
            seconds.append(solves.seconds - before[0])
            solved.append(engine.report.solved_here - before[1])
            value = loss.item()
    interval, moved = engine.parts.units.schedule.cycle, engine.report.moved
    engine.detach()
    dist.destroy_process_group()
    return Track(seconds, solved, told, moved, interval, value, {k: v.detach() for k, v in model.named_parameters()})


def record(tracks: list[Track], without: list[Track]) -> dict[str, Any]:
    """The figures of a run, and how far its weights are from another's."""
    one, other = tracks[0], without[0]
    settled = len(one.seconds_S) // 3 // one.interval * one.interval
    seconds = [sum(track.seconds_S[-settled:]) for track in tracks]
    largest = max(weight.abs().max().item() for weight in other.weights.values())
    apart = max((one.weights[name] - weight).abs().max().item() for name, weight in other.weights.items())
    return {
        "interval": one.interval,
        "settled_steps": settled,
        "seconds": seconds,
        "solved": [sum(track.solved_S[-settled:]) for track in tracks],
        "slowest_over_mean": max(seconds) / (sum(seconds) / len(seconds)),
        "moved": one.moved,
        "told": one.told,
        "loss": sum(track.loss for track in tracks) / len(tracks),
        "weights_apart": apart / largest,
    }


def main() -> None:
    """Measure, print the table, append a JSON line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[2, 4])
    add("--problem", choices=list(PROBLEMS), default="byte_lm")
    add("--methods", choices=list(METHODS), nargs="+", default=["soap", "kfac"])
    add("--throttle", choices=["counted", "sleep", "cgroup"], default="counted")
    add("--steps", type=int, default=160)
    add("--period", type=int, default=8, help="the largest interval, reached at ten times as many steps")
    add("--lr", type=float, default=3e-3)
    add("--out", type=Path, default=Path("benchmarks/steps/results/unequal.jsonl"), help="lines are appended")
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    found = []
    for ranks in args.ranks:
        with ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool:
            tracks = {(m, case): run(pool, ranks, args, m, case) for m in args.methods for case in CASES}
        for (method, case), of in tracks.items():
            equal = tracks[method, "half, equal shares"]
            found.append({"ranks": ranks, "method": method, "case": case} | record(of, equal))

    heads = ["ranks, method", "case", "seconds of solves by rank", "units", "slowest/mean", "moved", "loss", "weights"]
    table = headed(heads, f"{args.problem}, the last rank at half speed ({args.throttle})", left=2)
    for r in found:
        seconds = " ".join(f"{each:.2f}" for each in r["seconds"])
        numbers = f"{r['slowest_over_mean']:.2f}", str(r["moved"]), f"{r['loss']:.4f}", f"{r['weights_apart']:.1e}"
        units = " ".join(map(str, r["solved"]))
        table.add_row(f"{r['ranks']}, {r['method']}", r["case"], seconds, units, *numbers)
    show(table)
    facts = {name: getattr(args, name) for name in ("problem", "steps", "period", "lr", "throttle")}
    torch.set_num_threads(1)
    append(args.out, ({**facts, **machine("cpu"), **r} for r in found))


def run(pool: ProcessPoolExecutor, ranks: int, args: argparse.Namespace, method: str, case: str) -> list[Track]:
    """The tracks of one run, by rank."""
    print(f"{ranks} ranks, {method}: {case}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        common = ranks, f"{folder}/meeting", args, method, case
        futures = [pool.submit(measure, rank, *common) for rank in range(ranks)]
        return [future.result() for future in futures]


if __name__ == "__main__":
    main()
