"""What reports say of trainings that are healthy, and of such with a fault: one JSON line a training.

    python -m benchmarks.watching.verdicts --faulty --healthy

Faulty are seven faults in three architectures, on AdamW and with `SecondOrder(SOAP())`; a fault is found where a
finding of its kind names it, and its layer where it is one. Healthy are the problems of `anywhere` at AdamW's tuned
rate, on AdamW and with SOAP: whatever is found there that is worse than a note is a false alarm.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.anywhere.problems import PROBLEMS, load, tuned
from benchmarks.shared.problems import Problem
from benchmarks.watching.faulty import ARCHITECTURES, FAULTS, STEPS, Sick
from lightning_so import SOAP, Recorder, SecondOrder
from lightning_so.report.folder import recordings
from lightning_so.report.run import Run
from lightning_so.report.verdict.finding import NOTE, Finding
from lightning_so.report.verdict.judge import judge

OUT = Path("benchmarks/watching/results/verdicts.jsonl")


class Healthy(pl.LightningModule):
    """A problem of the suite as a Lightning training."""

    def __init__(self, name: str, problem: Problem, seed: int) -> None:
        super().__init__()
        self.problem, self.model, self.rate = problem, problem.model(seed), tuned(name, "adamw")
        self.draw = torch.Generator().manual_seed(seed)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The problem's loss of a batch that is drawn here."""
        return self.problem.loss(self.model, self.problem.batch(self.draw))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, as in the suite."""
        return torch.optim.AdamW(self.parameters(), lr=self.rate, betas=(0.9, 0.95))


def found(module: pl.LightningModule, steps: int, base: str) -> list[Finding]:
    """Train, recorded, and judge the recording."""
    with TemporaryDirectory() as folder:
        ours = [SecondOrder(SOAP(), print_plan=False, recorder=False)] if base == "soap" else []
        trainer = pl.Trainer(
            max_epochs=1,
            callbacks=[*ours, Recorder(root=folder)],
            logger=False,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(range(steps), batch_size=1))
        return judge(Run("run", recordings(Path(folder)))).findings


def judged(name: str | None, module: Any, findings: list[Finding]) -> dict[str, Any]:
    """Whether the fault was found and named, and what else was found that is worse than a note."""
    fault = FAULTS[name] if name else None
    told = [each for each in findings if fault is not None and each.kind in fault.kinds]
    if fault is not None and fault.layer:
        told = [each for each in told if each.where.startswith(f"net.{module.net.sick}")]
    return {
        "found": bool(told) if fault else None,
        "named": told[0].where if told else None,
        "others": [f"{each.kind}: {each.where}" for each in findings if each not in told and each.severity != NOTE],
    }


def main() -> None:
    """Train, and append a line for each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faulty", action="store_true")
    parser.add_argument("--healthy", action="store_true")
    parser.add_argument("--base", choices=["adamw", "soap"], nargs="+", default=["adamw", "soap"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cells: list[tuple[str, str | None, str]] = []
    if args.faulty:
        cells += list(product(ARCHITECTURES, [None, *FAULTS], args.base))
    if args.healthy:
        cells += [(name, None, base) for name, base in product(PROBLEMS, args.base)]
    for where, fault, base in cells:
        if where in ARCHITECTURES:
            module, steps = Sick(where, fault, args.seed), STEPS
        else:
            problem = load(where)
            module, steps = Healthy(where, problem, args.seed), problem.steps
        line = judged(fault, module, found(module, steps, base))
        with args.out.open("a") as file:
            print(json.dumps({"training": where, "fault": fault, "base": base, "seed": args.seed, **line}), file=file)
        verdict = {True: "found", False: "MISSED", None: "healthy"}[line["found"]]
        print(
            f"{where:<18} {base:<6} {fault or '-':<22} {verdict:<8} {line['named'] or ''}  {line['others']}", flush=True
        )


if __name__ == "__main__":
    main()
