"""What one call that solves many matrices of one shape saves against a call for each.

    python -m benchmarks.steps.solves --sides 4 8 16 64 128 --counts 64 4 --repeats 9

Both are done in turn `--repeats` times; a time is the median of the process CPU time of one thread, for all matrices.
Operations are those that torch dispatches. The matrices are `X X' / 2T`, X of 2 T columns, in float32, damped by a
thousandth of their largest diagonal entry.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.shared.table import append, headed, machine, show
from lightning_so.linalg import psd
from lightning_so.linalg.result import Result
from lightning_so.linalg.roots import WAYS, inverse_root

Solve = Callable[[Tensor, Tensor], Result]

#: Who solves: K-FAC's inverse, and Shampoo's root of a matrix in each way.
SOLVES: dict[str, Solve] = {"inverse": psd.inverse, **{way: partial(inverse_root, p=4, way=way) for way in WAYS}}
#: Each measured time is of as many rounds as this takes: the clock's ticks must not matter.
LEAST_SECONDS = 0.05


class Count(TorchDispatchMode):
    """Counts the operations that are dispatched while it is on."""

    def __init__(self) -> None:
        """From zero."""
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one and do it."""
        self.operations += 1
        return func(*args, **(kwargs or {}))


def factors(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Matrices of shape (count, side, side), and the damping of each."""
    X = torch.randn(count, side, 2 * side, generator=torch.Generator().manual_seed(side))
    F = X @ X.mT / (2 * side)
    return F, 1e-3 * F.diagonal(dim1=1, dim2=2).amax(1)


def batched(solve: Solve, F_QTT: Tensor, damping_Q: Tensor) -> list[Result]:
    """All in one call."""
    return [solve(F_QTT, damping_Q)]


def single(solve: Solve, F_QTT: Tensor, damping_Q: Tensor) -> list[Result]:
    """A call for each, as the engine solves its units."""
    return [solve(F_QTT[q : q + 1], damping_Q[q : q + 1]) for q in range(len(F_QTT))]


def seconds(work: Callable[[], Any], rounds: int) -> float:
    """CPU seconds of one round."""
    begun = time.process_time()
    for _ in range(rounds):
        work()
    return (time.process_time() - begun) / rounds


def operations(work: Callable[[], Any]) -> int:
    """Operations that a round dispatches."""
    with Count() as count:
        work()
    return count.operations


def measure(name: str, side: int, count: int, repeats: int) -> dict[str, Any]:
    """The line of one solve at one side."""
    F, damping = factors(count, side)
    works = [partial(how, SOLVES[name], F, damping) for how in (batched, single)]
    answers = [torch.cat([found.value for found in work()]) for work in works]
    assert all(found.ok for work in works for found in work()), f"{name} failed at side {side}"
    rounds = [max(1, round(LEAST_SECONDS / max(seconds(work, 1), 1e-6))) for work in works]
    times = [[seconds(work, n) for work, n in zip(works, rounds, strict=True)] for _ in range(repeats)]
    together, apart = (median(column) for column in zip(*times, strict=True))
    return {
        "solve": name,
        "side": side,
        "count": count,
        "repeats": repeats,
        "batched_ms": 1e3 * together,
        "single_ms": 1e3 * apart,
        "speedup": apart / together,
        "batched_operations": operations(works[0]),
        "single_operations": operations(works[1]),
        "difference": float((answers[0] - answers[1]).abs().amax() / answers[1].abs().amax()),
        "times_ms": [[round(1e3 * t, 4) for t in row] for row in times],
    }


def table(lines: list[dict[str, Any]]) -> Table:
    """A row a solve and side."""
    heads = ["solve", "side", "matrices", "one call", "calls for each", "speed-up", "operations", "fewer", "difference"]
    found = headed(heads, "one call for all matrices against a call for each, CPU milliseconds and operations")
    for line in lines:
        found.add_row(
            line["solve"],
            f"{line['side']}",
            f"{line['count']}",
            f"{line['batched_ms']:.2f}",
            f"{line['single_ms']:.2f}",
            f"{line['speedup']:.2f}x",
            f"{line['batched_operations']} / {line['single_operations']}",
            f"{line['single_operations'] / line['batched_operations']:.0f}x",
            f"{line['difference']:.0e}",
        )
    return found


def main() -> None:
    """Measure, print the table, append a JSON line a solve and side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--solves", nargs="+", choices=list(SOLVES), default=list(SOLVES))
    add("--sides", type=int, nargs="+", default=[4, 8, 16, 64, 128])
    add("--counts", type=int, nargs="+", default=[64, 4], help="matrices: a burst of all, and what one step is due")
    add("--repeats", type=int, default=9)
    add("--out", type=Path, default=Path("benchmarks/steps/results/solves.jsonl"), help="lines are appended")
    args = parser.parse_args()

    torch.set_num_threads(1)
    cells = product(args.counts, args.solves, args.sides)
    lines = [measure(name, side, count, args.repeats) for count, name, side in cells]
    show(table(lines))
    append(args.out, ({**machine("cpu"), **line} for line in lines))


if __name__ == "__main__":
    main()
