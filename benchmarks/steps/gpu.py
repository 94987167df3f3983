"""All that is measured on a GPU, in one go and within a time: `make bench-gpu`.

    python -m benchmarks.steps.gpu                                  # a CUDA device, less than 9 minutes
    python -m benchmarks.steps.gpu --device cpu --quick --out /tmp/lines     # a CPU, to see that it runs

The tests that need a device; ways to find bases and polar factors; then whole steps, of the large byte language model
at 8,192, 32,768 and 65,536 tokens and of small models, each method with its loss. Every part is a process of its own
with a limit: one that fails or is too slow is named, and the others go on. What no longer fits before the deadline is
left out and named. Ends with 1 if any part has failed. Lines are appended to `results/`, and the table of
benchmarks/README.md is written from them, if they are of a device.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.steps import gpu_table

ROOT = Path(__file__).parents[2]
#: Seconds in which all has to be done.
DEADLINE = 520.0
#: Seconds that a process takes before it measures, and afterwards until it has ended.
AROUND = 25.0
OURS = ["muon", "soap:start=8", "kfac", "ekfac:start=8", "shampoo"]
#: AdamW twice: its second run is what others are compared with, since the first has the device's own start.
VARIANTS = ["adamw", "adamw", "torch_muon", *OURS, *(f"{variant}:max_overhead=0.1" for variant in OURS)]
VARIANTS += ["soap:start=8:lag=1", "kfac:lag=1"]
#: Whether matrices of several shapes are padded is measured at the start; these are the two that it chooses between.
PADDING = ["muon:padding=apart", "muon:padding=padded"]
#: Problems whose matrices are of many shapes.
MANY_SHAPES = ("autoencoder", "cnn")


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: What it is called.
        command: What Python is given; `{seconds}` is what it may measure.
        limit: Seconds after which it is ended.
        least: Seconds below which it is not begun.
    """

    name: str
    command: Sequence[str]
    limit: float
    least: float


@dataclass(frozen=True)
class Outcome:
    """What became of a part: "done", "failed" or "left out", and why."""

    part: Part
    state: str
    seconds: float = 0.0
    why: str = ""


def parts(device: str, out: Path, run: str, *, quick: bool) -> list[Part]:
    """The parts, in their order.

    Args:
        device: "cuda", or "cpu".
        out: The folder of the lines.
        run: What the lines of this run have in common.
        quick: The smallest sizes, to see that it runs.

    Returns:
        The parts.
    """
    common = ["--device", device, "--run", run, "--seconds", "{seconds}"]
    tests = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("**/test_cuda*.py"))
    sizes = ["--sides", "16", "--counts", "2", "--matrices", "2x8x16", "--repeats", "1"] if quick else []

    def steps(problem: str, batch: int, count: int, limit: float, *more: str) -> Part:
        command = ["-m", "benchmarks.steps.one_process", "--problem", problem, "--batch-size", str(batch), *more]
        command += [
            "--steps",
            str(count),
            *common,
            "--out",
            str(out / "one_process_gpu.jsonl"),
            "--variants",
            *VARIANTS,
        ]
        command += PADDING if problem in MANY_SHAPES else []
        return Part(f"{problem}, batches of {batch}", command, limit, AROUND + limit / 4)

    found = [
        Part("tests", ["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], 100, 30),
        Part("bases", ["-m", "benchmarks.steps.bases", *sizes, *common, "--out", str(out / "bases.jsonl")], 50, 35),
    ]
    once = "--repeats", "1"
    if quick:
        return [*found, steps("autoencoder", 8, 3, 120, *once)]
    sizes_of = (32, 80, 75), (128, 60, 85), (256, 40, 105)
    large = [steps("byte_lm_large", batch, count, limit, *once, "--bf16") for batch, count, limit in sizes_of]
    usual = ("byte_lm", 16), ("autoencoder", 256), ("cnn", 128)
    small = [steps(problem, batch, 120, 35, "--repeats", "2") for problem, batch in usual]
    return [*found, *large, *small]


def started(command: Sequence[str], limit: float) -> int:
    """The exit status of a Python of its own, from the root of the checkout.

    Raises:
        TimeoutExpired: If it takes longer than its limit; it is ended, with all that it has started.
    """
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, start_new_session=True)
    try:
        return process.wait(limit)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def bench(
    todo: Sequence[Part],
    deadline: float,
    start: Callable[[Sequence[str], float], int] = started,
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Do the parts one after the other, as long as there is time.

    Args:
        todo: The parts.
        deadline: Seconds for all of them.
        start: Does a command within a limit and gives its exit status; see `started`.
        clock: Seconds since some moment.

    Returns:
        What became of each.
    """
    begun, outcomes = clock(), list[Outcome]()
    for part in todo:
        now = clock()
        limit = min(part.limit, deadline - (now - begun))
        if limit < part.least:
            outcomes.append(Outcome(part, "left out", why=f"{max(limit, 0):.0f} s were left of {deadline:.0f}"))
            continue
        print(f"== {part.name}, at most {limit:.0f} s", flush=True)
        seconds = f"{max(limit - AROUND, 1):.0f}"
        try:
            status = start([word.format(seconds=seconds) for word in part.command], limit)
            why = f"exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            why = f"not done after {limit:.0f} s"
        outcomes.append(Outcome(part, "failed" if why else "done", clock() - now, why))
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line a part."""
    rows = [(one.state, one.part.name, f"{one.seconds:.0f} s" if one.seconds else "", one.why) for one in outcomes]
    return "\n".join(" ".join(word for word in (f"{state:9}", name, *rest) if word) for state, name, *rest in rows)


def main() -> int:
    """Measure, say what became of each part, write the table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--quick", action="store_true", help="the smallest sizes, to see that it runs")
    add("--deadline", type=float, default=DEADLINE, help="seconds for all of it")
    add("--only", nargs="+", help="words, one of which is in the names of the parts to do")
    add("--out", type=Path, help=f"default: {gpu_table.RESULTS.relative_to(ROOT)} of a device, else build/bench_gpu")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here: --device cpu --quick shows that all of it runs")

    out = args.out or (gpu_table.RESULTS if args.device == "cuda" else ROOT / "build" / "bench_gpu")
    run = datetime.now(UTC).isoformat(timespec="seconds")
    todo = parts(args.device, out.resolve(), run, quick=args.quick)
    if args.only:
        todo = [part for part in todo if any(word in part.name for word in args.only)]
    outcomes = bench(todo, args.deadline)
    print(summary(outcomes))
    if args.device == "cuda" and not args.quick and out == gpu_table.RESULTS:
        gpu_table.write()
    return int(any(one.state == "failed" for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
