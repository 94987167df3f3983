"""What FewDirections adds to a step: AdamW twice and AdamW with it in one process, interleaved, on the same batches.

    python -m benchmarks.steps.probes --problems byte_lm cnn byte_lm_8k --steps 200 --repeats 3

The whole is done `--repeats` times, identically, and a step's time is the least of its repeats; times are process CPU
time of one thread. A step with `k = 5, every = 10` computes one gradient more every ten steps: that is reported apart
from what the engine and the method do themselves. The difference of the two AdamW is the noise.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.shared.methods import Settings, build
from benchmarks.shared.problems import PROBLEMS, Problem, load
from benchmarks.shared.table import machine
from lightning_so import FewDirections, attach

RATE = 2e-3


class Lane:
    """One training, and the milliseconds of each step: whole, of the training's gradient, of those besides."""

    def __init__(self, problem: Problem, method: Any, steps: int) -> None:
        """Make it."""
        self.problem, self.model = problem, problem.model(0)
        self.contender = build("adamw", self.model, Settings(RATE, steps=steps))
        self.engine = None if method is None else attach(self.model, self.contender.optimizers[0], method)
        self.rows: list[tuple[float, float, float]] = []

    def step(self, batch: Any) -> None:
        """One step."""
        spent: list[float] = []
        optimizer = self.contender.optimizers[0]

        def closure() -> Tensor:
            begun = time.process_time()
            optimizer.zero_grad()
            loss = self.problem.loss(self.model, batch)
            loss.backward()
            spent.append(time.process_time() - begun)
            return loss

        begun = time.process_time()
        optimizer.step(closure)
        self.rows.append((time.process_time() - begun, spent[0], sum(spent[1:])))
        self.contender.advance()


def measure(problem: Problem, method: FewDirections, steps: int, repeats: int) -> list[dict[str, Any]]:
    """One record a variant."""
    variants = [("adamw", None), ("adamw again", None), (f"FewDirections(k={method.k}, every={method.every})", method)]
    runs, lanes = [], []
    for _ in range(repeats):
        lanes = [Lane(problem, chosen, steps) for _, chosen in variants]
        generator = torch.Generator().manual_seed(0)
        for i in range(steps):
            batch, first = problem.batch(generator), i % len(lanes)
            for lane in lanes[first:] + lanes[:first]:
                lane.step(batch)
        runs.append([lane.rows for lane in lanes])
    # Variants, steps, (whole, gradient, besides); the first probe also finds out how products are taken.
    least = 1e3 * np.array(runs).min(0)
    rows = least[:, method.every :]
    probing = np.arange(method.every + 1, steps + 1) % method.every == 0
    base = rows[0, :, 0].mean()
    records = []
    for (name, _), lane, row in zip(variants, lanes, rows):
        own = row[:, 0] - row[:, 1] - row[:, 2]
        record = {
            "variant": name,
            "mean_ms": row[:, 0].mean(),
            "median_ms": float(np.median(row[:, 0])),
            "median_of_probing_ms": float(np.median(row[probing, 0])),
            "largest_ms": row[:, 0].max(),
            "to_adamw": row[:, 0].mean() / base,
            "gradient_ms": row[:, 1].mean(),
            "besides_ms": row[:, 2].mean(),
            "own_ms": own.mean(),
            "own_median_ms": float(np.median(own[~probing])),
            "own_median_of_probing_ms": float(np.median(own[probing])),
        }
        if lane.engine is not None:
            record["evaluations"] = lane.engine.memory.counts.evaluations
            # Three at the first probe are to see how products are to be taken.
            record["evaluations_per_probe"] = (record["evaluations"] - 3) / (steps // method.every)
        records.append(record)
    return records


def main() -> None:
    """Measure, print, append JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--problems", nargs="+", default=["byte_lm", "cnn"], choices=list(PROBLEMS))
    add("--steps", type=int, default=200)
    add("--repeats", type=int, default=3)
    add("--k", type=int, default=5)
    add("--every", type=int, default=10)
    add("--out", type=Path, default=Path("benchmarks/steps/results/probes.jsonl"), help="lines are appended")
    args = parser.parse_args()

    torch.set_num_threads(1)
    for name in args.problems:
        records = measure(load(name), FewDirections(k=args.k, every=args.every), args.steps, args.repeats)
        with args.out.open("a") as file:
            for record in records:
                print(json.dumps({"problem": name, "steps": args.steps, **machine("cpu"), **record}), file=file)
                told = {key: round(value, 3) for key, value in record.items() if key != "variant"}
                print(f"{name:<12} {record['variant']:<32}", *(f"{key} {value}" for key, value in told.items()))


if __name__ == "__main__":
    main()
