"""Every method under every strategy on two ranks against one process: the largest difference of any weight.

    python -m tests.support.sweep

30 steps in float32, plain, and with accumulation of two micro-batches and clipping. Some minutes; the tests take a
covering part of it (`test_sharded_training.py`, `test_zero.py`).
"""

import argparse
import warnings

import torch
from rich.console import Console
from rich.table import Table

from lightning_so import EKFAC, KFAC, SOAP, Muon, Shampoo
from tests.support.trainings import train
from tests.support.world import World

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
METHODS = {
    "soap": (SOAP(start=10, period=8), ADAMW),
    "muon": (Muon(), ADAMW),
    "kfac sgd": (KFAC(period=8), SGD),
    "kfac adamw": (KFAC(period=8), ADAMW),
    "shampoo adamw": (Shampoo(period=8, epsilon=1e-3), ADAMW),
    "shampoo sgd": (Shampoo(period=8, epsilon=1e-3), SGD),
    "ekfac": (EKFAC(start=10, period=8), ADAMW),
}
SITUATIONS = {"plain": {}, "accumulate, clip": {"accumulate": 2, "clip": 0.3}}
STRATEGIES = ("ddp", "ddp_so", "fsdp2", "fsdp1", "zero0", "zero1", "zero2", "zero3")


def main() -> None:
    """Train all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", choices=list(METHODS), nargs="+", default=list(METHODS))
    args = parser.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    table = Table("method", "situation", *STRATEGIES, title="largest difference of any weight to one process")
    two = World(2)
    for name in args.methods:
        for situation, more in SITUATIONS.items():
            one, cells = train("one", *METHODS[name], **more), []
            for strategy in STRATEGIES:
                found = two.run(train, strategy, *METHODS[name], **more)[0]
                apart = max(float((found.weights[key] - value).abs().max()) for key, value in one.weights.items())
                cells.append(f"{apart:.1e}")
            table.add_row(name, situation, *cells)
    two.close()
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
