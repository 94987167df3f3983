"""Nystrom in front of SGD where the loss is convex and badly scaled: logistic regression on digits, pixels of 0 to 16.

    python -m benchmarks.newton.nystrom

Steps and gradient evaluations, every product charged, until the regularised loss of all images is within a share of its
least. Rates are three times apart; the first seed runs at all of them, the others at the best one and beside it.
"""

import argparse
import json
import time
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.shared.images import digits
from lightning_so import Nystrom, attach

OUT = Path("benchmarks/newton/results/nystrom.jsonl")
DECAY = 1e-3
#: Images a batch, and how far above its least the loss may end.
SETTINGS = {
    "all images": (0, 0.1),
    "100 images": (100, 0.5),
    "all images from zero": (0, 0.1),
    "100 images from zero": (100, 0.5),
}
RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
METHODS = {
    "alone": None,
    "Nystrom()": Nystrom(),
    "Nystrom(rank=20)": Nystrom(rank=20),
    "Nystrom(every=20)": Nystrom(every=20),
    "Nystrom(every=10)": Nystrom(every=10),
    "Nystrom(hessian)": Nystrom(curvature="hessian"),
}


def objective(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy and the squares that weight decay stands for."""
    return F.cross_entropy(net(x), y) + DECAY / 2 * sum(p.square().sum() for p in net.parameters())


def data() -> tuple[Tensor, Tensor]:
    """Images as rows of pixels from 0 to 16, and labels."""
    x, y = digits().train
    return 16 * x.flatten(1), y


@cache
def least() -> float:
    """The least value of the objective, in float64."""
    net = nn.Linear(64, 10).double()
    x, y = data()
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=3000, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(net, x.double(), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(closure())


def run(setting: str, method: str, momentum: float, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """One training, to the target or the last step."""
    size, share = SETTINGS[setting]
    target, (x, y) = (1 + share) * least(), data()
    torch.manual_seed(seed)
    net = nn.Linear(64, 10)
    if setting.endswith("zero"):
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum, weight_decay=DECAY)
    engine = None if METHODS[method] is None else attach(net, optimizer, METHODS[method])
    generator = torch.Generator().manual_seed(seed)
    number, loss, begun = 0, 1e4, time.process_time()
    while number < steps and target < loss and (loss < 1e4 or not number):
        rows = torch.randint(0, len(x), (size,), generator=generator) if size else slice(None)

        def closure(rows: Any = rows) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x[rows]), y[rows])
            loss.backward()
            return loss

        optimizer.step(closure)
        number += 1
        with torch.no_grad():
            loss = float(objective(net, x, y))
    more = 0.0 if engine is None else engine.memory.counts.evaluations + engine.memory.counts.forwards / 3
    return {
        "setting": setting,
        "method": method,
        "momentum": momentum,
        "rate": rate,
        "seed": seed,
        "budget": steps,
        "steps": number if loss <= target else None,
        "evaluations": round(number + more) if loss <= target else None,
        "excess": round(loss / least() - 1, 4),
        "seconds": round(time.process_time() - begun, 2),
    }


def of(lines: list[dict[str, Any]]) -> tuple[float, float]:
    """The median number of steps, and where they are not enough that of the excess."""
    return median(line["steps"] or 1e9 for line in lines), median(line["excess"] for line in lines)


def main() -> None:
    """Run all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("images a step", "method", "momentum", "best rate", "steps", "evaluations", "seconds", "excess")
    with OUT.open("a") as file:
        for setting in args.settings:
            for method in args.methods:
                momentum = 0.9
                rates = args.rates
                found = {rate: [run(setting, method, momentum, rate, 0, args.steps)] for rate in rates}
                place = min(range(len(rates)), key=lambda i: of(found[rates[i]]))
                around = rates[max(place - 1, 0) : place + 2]
                for rate in around:
                    found[rate] += [run(setting, method, momentum, rate, s, args.steps) for s in range(1, args.seeds)]
                for line in (line for lines in found.values() for line in lines):
                    print(json.dumps(line), file=file, flush=True)
                rate = min(around, key=lambda rate: of(found[rate]))
                best = found[rate]
                cells = [[line[name] for line in best] for name in ("steps", "evaluations", "seconds", "excess")]
                table.add_row(setting, method, str(momentum), f"{rate:g}", *(", ".join(map(str, c)) for c in cells))
                Console(width=140).print(table)


if __name__ == "__main__":
    main()
