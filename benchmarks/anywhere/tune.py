"""The rates of AdamW and SGD on each problem of the suite, seed 0: five, and more while the best is at an edge.

    python -m benchmarks.anywhere.tune

A line a problem and optimizer goes to tuned.jsonl: rates, final losses, the best rate. Rates are a factor of about
three apart. Losses that are summed have SGD's rates smaller by as many as they sum.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.anywhere.cell import Cell, runs
from benchmarks.anywhere.problems import PROBLEMS, TUNED, read_tuned
from benchmarks.training.table import finite

#: Exponents of the first five rates, in half decades: AdamW's from 3e-4 to 3e-2, SGD's from 1e-2 to 1.
FIRST = {"adamw": range(-7, -2), "sgd": range(-4, 1)}
#: Further away than this no rate is tried.
FAR = 12
#: Where SGD's rates begin elsewhere: the losses of these are summed, over a batch or over an image.
SHIFT = {"classify_sum": -4, "squares_sum": -9, "bernoulli_pixels": -3}


def rate(half_decades: int) -> float:
    """1e-2 of -4, 3e-2 of -3."""
    return float(f"{(1 if half_decades % 2 == 0 else 3) * 10.0 ** (half_decades // 2):.0e}")


def best(losses: dict[int, float | None]) -> int:
    """The exponent of the least finite loss."""
    return min(losses, key=lambda at: finite(losses[at]))


def wanted(losses: dict[int, float | None], first: range) -> int | None:
    """The exponent to try next: first all of the five, then beyond the edge that is best; none when it is inside."""
    missing = next((at for at in first if at not in losses), None)
    if missing is not None:
        return missing
    at = best(losses)
    beyond = {min(losses): min(losses) - 1, max(losses): max(losses) + 1}.get(at)
    return beyond if beyond is not None and abs(beyond - first[2]) <= FAR else None


def tuned(problem: str, method: str, jobs: int = 1) -> dict[str, Any]:
    """The line of an optimizer on a problem."""
    shift = SHIFT.get(problem, 0) if method == "sgd" else 0
    first = range(FIRST[method][0] + shift, FIRST[method][-1] + shift + 1)
    losses, seconds = dict[int, float | None](), dict[int, float]()
    while (at := wanted(losses, first)) is not None:
        batch = [at] if losses else list(first)
        for line in runs([Cell(problem, method, rate(each), 0) for each in batch], jobs):
            exponent = next(each for each in batch if rate(each) == line["rate"])
            losses[exponent], seconds[exponent], steps = line["final_loss"], line["cpu_seconds"], line["steps"]
    order = sorted(losses)
    return {
        "problem": problem,
        "method": method,
        "rate": rate(best(losses)),
        "rates": [rate(each) for each in order],
        "losses": [losses[each] for each in order],
        "seed": 0,
        "steps": steps,
        "cpu_seconds": seconds[best(losses)],
    }


def main() -> None:
    """Tune what is not tuned yet; a line is written as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", choices=list(PROBLEMS), nargs="+", default=list(PROBLEMS))
    parser.add_argument("--methods", choices=list(FIRST), nargs="+", default=list(FIRST))
    parser.add_argument("--again", action="store_true", help="those too that the file has")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=TUNED)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    have = {} if args.again else read_tuned(args.out)
    for problem in args.problems:
        for method in args.methods:
            if (problem, method) not in have:
                line = tuned(problem, method, args.jobs)
                with args.out.open("a") as file:
                    print(json.dumps(line), file=file)
    print(f"rates: {args.out}")


if __name__ == "__main__":
    main()
