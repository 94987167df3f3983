"""What callbacks that watch cost a Lightning training of the byte LM: a share of its CPU seconds, one JSON line a run.

    python -m benchmarks.watching.cost --watch recorder --base adamw soap --seeds 0 1 2

Two figures. `inside` is what the process spent in the callback's own functions, over the rest of the training: exact,
where nothing of it is in hooks on layers. `paired` is the whole training with it over the same without, run in turns
in one process, median over the pairs. With seeds both are medians and ranges. Batches, weights and steps are the same.
"""

import argparse
import json
import time
from functools import wraps
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from benchmarks.shared.table import machine
from examples.byte_lm import ByteLM, ByteText
from lightning_so import SOAP, CurvatureMonitor, Recorder, SecondOrder

WATCHERS = {"recorder": Recorder, "monitor": CurvatureMonitor}
OUT = Path("benchmarks/watching/results/cost.jsonl")
#: Of a callback what the Trainer asks at every step.
HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
    "on_train_end",
)


def timed(callback: Any, spent: list[float]) -> Any:
    """The same callback, which adds the CPU seconds of its hooks to `spent[0]`."""

    def around(hook: Any) -> Any:
        @wraps(hook)
        def inside(*args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            try:
                return hook(*args, **kwargs)
            finally:
                spent[0] += time.process_time() - begun

        return inside

    for name in HOOKS:
        setattr(callback, name, around(getattr(callback, name)))
    return callback


def trained(base: str, watcher: Any, seed: int, steps: int) -> tuple[float, float]:
    """CPU seconds of a training, and those in the watcher's own functions."""
    torch.manual_seed(seed)
    spent = [0.0]
    callbacks = [SecondOrder(SOAP(), print_plan=False, recorder=False)] if base == "soap" else []
    if watcher is not None:
        callbacks.append(timed(watcher(), spent))
    with TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=steps,
            callbacks=callbacks,
            logger=CSVLogger(folder),
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        begun = time.process_time()
        trainer.fit(ByteLM(total_steps=steps), ByteText(seed=seed))
        return time.process_time() - begun, spent[0]


def main() -> None:
    """Measure, and append a line for every watcher and base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watch", choices=list(WATCHERS), nargs="+", default=["recorder"])
    parser.add_argument("--base", choices=["adamw", "soap"], nargs="+", default=["adamw", "soap"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    trained("adamw", None, 0, 10)  # what is slow once
    for name in args.watch:
        for base in args.base:
            inside, paired = list[float](), list[float]()
            for seed in args.seeds:
                plain, _ = trained(base, None, seed, args.steps)
                watched, spent = trained(base, WATCHERS[name], seed, args.steps)
                inside.append(spent / (watched - spent))
                paired.append(watched / plain - 1)
            line = {
                "watch": name,
                "base": base,
                "steps": args.steps,
                "seeds": args.seeds,
                "inside": [round(share, 5) for share in inside],
                "paired": [round(share, 5) for share in paired],
                **machine("cpu"),
            }
            with args.out.open("a") as file:
                print(json.dumps(line), file=file)
            print(f"{name} over {base}: inside {median(inside):.2%}, paired {median(paired):+.1%}", flush=True)


if __name__ == "__main__":
    main()
