"""Whole-batch training by methods that make the step themselves, beside tuned Adam: what they need to its loss.

    python -m benchmarks.newton.whole_batch                         # Adam first, then all methods, then the table
    python -m benchmarks.newton.whole_batch --methods "NewtonCG()"  # others may be run beside, once Adam is in the file

The deep autoencoder on all 1,500 training digits as one batch. Adam at every rate of a grid; the one that ends lowest
gives the target of each seed, its training loss after `--steps` steps. Evaluations are gradients: a forward pass is a
third of one, a backward pass two thirds, whatever it is for (a Gauss-Newton product is one of each). Seconds are
process CPU seconds of steps. Largest over median is of a step's time, the least of three identical runs for each step.
"""

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.shared.images import digits
from benchmarks.shared.problems import load
from lightning_so import NewtonCG, SaddleFreeKrylov, attach
from lightning_so.contract.vector_method import VectorMethod

#: A file for every number of Adam's steps.
OUT = "benchmarks/newton/results/whole_batch_{}.jsonl"
RATES = (3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2)
METHODS: dict[str, VectorMethod] = {
    "NewtonCG()": NewtonCG(),
    "NewtonCG(slice=1)": NewtonCG(slice=1),
    "NewtonCG(slice=2)": NewtonCG(slice=2),
    "NewtonCG(slice=5)": NewtonCG(slice=5),
    "NewtonCG(slice=10)": NewtonCG(slice=10),
    "NewtonCG(slice=20)": NewtonCG(slice=20),
    "NewtonCG(slice=10, iterations=10)": NewtonCG(slice=10, iterations=10),
    "NewtonCG(slice=10, damping=0.1)": NewtonCG(slice=10, damping=0.1),
    "SaddleFreeKrylov()": SaddleFreeKrylov(),
    'SaddleFreeKrylov(curvature="constant")': SaddleFreeKrylov(curvature="constant"),
}


@dataclass
class Run:
    """One training.

    Attributes:
        losses: Before the first step, and after each.
        evaluations: So far, after each step.
        seconds: Of each step.
    """

    losses: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def rounded(self) -> dict[str, list[float]]:
        """As it is written."""
        return {
            "losses": [round(loss, 5) for loss in self.losses],
            "evaluations": [round(number, 2) for number in self.evaluations],
            "seconds": [round(number, 4) for number in self.seconds],
        }

    def reached(self, target: float) -> tuple[int, float, float] | None:
        """Steps, evaluations and seconds to a loss; None if it was not reached."""
        for step, loss in enumerate(self.losses):
            if loss <= target:
                return step, self.evaluations[step - 1], sum(self.seconds[:step])
        return None


def run(
    problem: Any, method: VectorMethod | float, seed: int, *, steps: int, most: float = 1e9, target: float = -1.0
) -> tuple[Run, dict[str, float]]:
    """Train: a method, or Adam at a rate, until so many steps, evaluations, or a loss."""
    model, batch, found, forwards = problem.model(seed), problem.batch(None), Run(), 0
    if isinstance(method, float):
        optimizer, engine = torch.optim.Adam(model.parameters(), lr=method), None
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        engine = attach(model, optimizer, method)

    def closure() -> Tensor:
        nonlocal forwards
        forwards += 1
        optimizer.zero_grad()
        loss = problem.loss(model, batch, "mean")
        loss.backward()
        return loss

    while True:
        begun = time.process_time()
        loss = optimizer.step(closure)
        found.seconds.append(time.process_time() - begun)
        found.losses.append(loss.item())
        backwards = len(found.losses) + (0 if engine is None else engine.memory.counts.evaluations)
        found.evaluations.append((forwards + 2 * backwards) / 3)
        # The loss of a step is that before it: one more step says what the last one came to.
        done = len(found.losses) > steps or found.evaluations[-1] > most or found.losses[-1] <= target
        if done or not loss.isfinite():
            return found, {} if engine is None else engine.scalars()


def whole() -> Any:
    """The autoencoder problem with all training images in a batch."""
    pixels, labels = digits().train
    return replace(load("autoencoder"), batch=lambda _: (pixels, labels))


def spikes(problem: Any, method: VectorMethod | float, steps: int) -> float:
    """The largest step over the median one, of CPU seconds, the least of three identical runs for each."""
    runs = [run(problem, method, 0, steps=steps - 1)[0].seconds for _ in range(3)]
    least = [min(times) for times in zip(*runs)]
    return max(least) / median(least)


def noted(out: Path, **line: Any) -> None:
    """Write a line."""
    with out.open("a") as file:
        print(json.dumps(line), file=file, flush=True)


def read(out: Path) -> list[dict[str, Any]]:
    """All lines."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def tuned(lines: list[dict[str, Any]]) -> tuple[float, dict[float, float], dict[int, float]]:
    """Adam's best rate, where every rate ends, and where every seed ends at the best."""
    ends: dict[float, dict[int, float]] = {}
    for line in lines:
        if "rate" in line:
            ends.setdefault(line["rate"], {})[line["seed"]] = line["losses"][-1]
    means = {rate: mean(found.values()) for rate, found in sorted(ends.items())}
    best = min(means, key=lambda rate: means[rate])
    return best, means, ends[best]


def table(lines: list[dict[str, Any]]) -> Table:
    """A row a method: what it needs to the losses that tuned Adam ends with."""
    best, means, targets = tuned(lines)
    edge = "at the edge of the grid" if best in (min(means), max(means)) else "inside the grid"
    found = Table("method", "reached by", "steps", "evaluations", "CPU s", "largest / median step")
    found.caption = f"Adam by rate: {', '.join(f'{rate:g}: {end:.3f}' for rate, end in means.items())}; best {edge}"
    names = list(dict.fromkeys(line["method"] for line in lines))
    for name in [f"Adam at {best:g}", *(name for name in names if not name.startswith("Adam"))]:
        mine = [line for line in lines if line["method"] == name]
        runs = {line["seed"]: line for line in mine if "losses" in line}
        ends = [Run(r["losses"], r["evaluations"], r["seconds"]).reached(targets[seed]) for seed, r in runs.items()]
        got = [end for end in ends if end is not None]
        row = ["-"] * 3
        if len(got) == len(ends):
            row = [f"{mean(end[place] for end in got):.{after}f}" for place, after in ((0, 0), (1, 0), (2, 1))]
        ratio = [f"{line['largest over median']:.2f}" for line in mine if "largest over median" in line]
        found.add_row(name, f"{len(got)} of {len(ends)}", *row, *(ratio[-1:] or ["-"]))
    return found


def main() -> None:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="of Adam")
    parser.add_argument("--most", type=float, default=800.0, help="evaluations of a method")
    parser.add_argument("--timed", type=int, default=8, help="steps whose times are compared")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    problem, out = whole(), Path(OUT.format(args.steps))
    if not any("rate" in line for line in read(out)):
        for rate in RATES:
            for seed in args.seeds:
                one, _ = run(problem, rate, seed, steps=args.steps)
                noted(out, method=f"Adam at {rate:g}", rate=rate, seed=seed, **one.rounded)
        best = tuned(read(out))[0]
        noted(out, **{"method": f"Adam at {best:g}", "largest over median": spikes(problem, best, args.timed)})
    targets = tuned(read(out))[2]
    for name in args.methods:
        for seed in args.seeds:
            one, scalars = run(problem, METHODS[name], seed, steps=100_000, most=args.most, target=targets[seed])
            noted(out, method=name, seed=seed, target=targets[seed], **one.rounded, scalars=scalars)
        noted(out, **{"method": name, "largest over median": spikes(problem, METHODS[name], args.timed)})
    Console(width=120).print(table(read(out)))


if __name__ == "__main__":
    main()
