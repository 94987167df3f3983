"""One run of the suite, its JSON line, and which runs a file has."""

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.anywhere.problems import load
from benchmarks.shared import lines
from benchmarks.shared.loop import trained
from benchmarks.shared.methods import Settings, build
from lightning_so.errors import UnusableError

#: Points of a curve beside its start.
POINTS = 12


class Cell(NamedTuple):
    """What tells a run from all others.

    Attributes:
        rate: The learning rate.
        times: It over the tuned rate.
        stretch: Steps over the problem's own.
    """

    problem: str
    method: str
    rate: float
    seed: int
    times: float = 1.0
    stretch: float = 1.0


def ran(cell: Cell) -> dict[str, Any]:
    """Do a run and give its line. What a method refuses, or fails at, is written in it: the others go on."""
    torch.set_num_threads(1)
    problem = load(cell.problem)
    steps = round(problem.steps * cell.stretch)
    begun = time.perf_counter()
    first = {**cell._asdict(), "steps": steps, "loss_name": problem.loss_name, "torch": torch.__version__}
    try:
        model = problem.model(cell.seed)
        contender = build(cell.method, model, Settings(cell.rate, steps=steps))
        curve = trained(problem, model, contender, cell.seed, steps, max(1, steps // POINTS))
    except UnusableError as error:
        return {**first, "refused": str(error), "final_loss": None}
    except Exception as error:  # Whatever a method or torch says: it is a result.
        return {**first, "failed": f"{type(error).__name__}: {error}", "final_loss": None}
    return {
        **first,
        "final_loss": lines.rounded(curve[-1].loss),
        "cpu_seconds": round(curve[-1].seconds, 3),
        "wall_seconds": round(time.perf_counter() - begun, 3),
        "curve": lines.written(curve),
        "counters": contender.counters(),
    }


def read(path: Path) -> dict[Cell, dict[str, Any]]:
    """The lines of a file by their runs."""
    return lines.read(path, Cell)


def left(cells: Iterable[Cell], path: Path) -> list[Cell]:
    """Those that a file does not have. What failed is run again."""
    have = lines.done(path, Cell)
    return [cell for cell in dict.fromkeys(cells) if cell not in have]


def runs(cells: Iterable[Cell], jobs: int) -> Iterator[dict[str, Any]]:
    """Lines as they come: of this process, or of several with one thread each."""
    if jobs == 1:
        yield from map(told, map(ran, cells))
        return
    # Read by the OpenMP runtime when a worker starts: set_num_threads alone would come after the pool of threads.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(ran, cell) for cell in cells]):
            yield told(future.result())


def told(line: dict[str, Any]) -> dict[str, Any]:
    """The line, after a word of it was printed."""
    said = (
        line.get("failed")
        or line.get("refused")
        or f"{line['loss_name']} {line['final_loss']}  {line['cpu_seconds']:.1f} s"
    )
    name = f"{line['problem']:<18} {line['method']:<16} rate {line['rate']:<8.3g} seed {line['seed']}"
    print(f"{name} x{line['stretch']:g} steps  {said}", flush=True)
    return line
