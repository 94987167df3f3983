"""What the lines of results files come to: losses, steps, ratios, as the pages of docs/ tell them."""

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.anywhere import shares
from benchmarks.anywhere.cell import read as read_cells
from benchmarks.curvature import landscapes
from benchmarks.peers import first_page
from benchmarks.peers.run import read as read_peers
from benchmarks.peers.table import Sweep, sweeps
from benchmarks.steps import gpu_table
from benchmarks.training import table
from benchmarks.training.table import Cell, cells

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
#: Of a training, where nothing else is said.
STEPS = {"byte_lm": 400, "autoencoder": 200, "cnn": 120}


def file(name: str) -> Path:
    """A results file, by its name alone."""
    (path,) = BENCHMARKS.glob(f"*/results/{name}.jsonl")
    return path


@cache
def lines(name: str) -> list[dict[str, Any]]:
    """All lines of a results file."""
    return [json.loads(text) for text in file(name).read_text().splitlines()]


def line(name: str, **wanted: Any) -> dict[str, Any]:
    """The last line of a file that has these values."""
    return [one for one in lines(name) if all(one.get(key) == value for key, value in wanted.items())][-1]


# Trainings of benchmarks/training


@cache
def trained(name: str, problem: str | None = None, steps: int | None = None) -> list[Cell]:
    """The cells of a file of `grid.py`."""
    runs = table.read([file(name)])
    return cells([run for run in runs if problem in (None, run["problem"]) and steps in (None, run["steps"])])


def best(name: str, label: str, lr: float | None = None, **of: Any) -> Cell:
    """A setting at a rate, or at the one at which it ends lowest."""
    found = [cell for cell in trained(name, **of) if cell.label == label and lr in (None, cell.lr)]
    return min(found, key=lambda cell: cell.loss)


def loss(name: str, label: str, lr: float | None = None, **of: Any) -> float:
    """Its mean final loss over seeds."""
    return best(name, label, lr, **of).loss


def field(
    problem: str, lr: float, run: int = 0, method: str = "soap", part: str = "final_loss", **options: Any
) -> dict[int, float]:
    """By seed, a part of the lines of what was tried; a run that was made several times is counted from 0."""
    wanted = {"problem": problem, "lr": lr, "method": method, "options": options, "steps": STEPS[problem]}
    found: dict[int, list[float]] = {}
    for one in lines("field"):
        if all(one[key] == value for key, value in wanted.items()):
            found.setdefault(one["seed"], []).append(one[part])
    return {seed: values[run] for seed, values in found.items() if run < len(values)}


def lower(
    problem: str,
    lr: float,
    seed: int | None = None,
    of: float | None = None,
    run: int = 0,
    method: str = "soap",
    **option: Any,
) -> float:
    """Percent by which a method with an option ends lower than without (at the rate `of`), on a seed or in the mean."""
    ours, theirs = field(problem, lr, method=method, **option), field(problem, of or lr, run, method)
    seeds = sorted(ours.keys() & theirs.keys()) if seed is None else [seed]
    return 100 * (1 - mean(ours[each] for each in seeds) / mean(theirs[each] for each in seeds))


def steps_to(method: str, lr: float, name: str = "grid_byte_lm", part: str = "steps") -> float:
    """Steps, or CPU seconds, to the loss that AdamW ends with at its best rate."""
    return middle(best(name, method, lr).reached(part, loss(name, "adamw")))


def dampings(method: str) -> dict[tuple[str, int], float]:
    """The loss of the default damping over the best of a sweep, by problem and batch."""
    sweeps_: dict[tuple[str, int], dict[float, list[float]]] = {}
    for one in lines("damping"):
        if one["method"] == method:
            sweep = sweeps_.setdefault((one["problem"], one["batch"]), {})
            sweep.setdefault(one["times"], []).append(one["final_loss"])
    means = {cell: {times: mean(found) for times, found in sweep.items()} for cell, sweep in sweeps_.items()}
    return {cell: sweep[1.0] / min(sweep.values()) for cell, sweep in means.items()}


def damped(method: str) -> float:
    """The same on the problem and batch where it is most."""
    return max(dampings(method).values())


def whitened(problem: str, lr: float, seed: int = 0) -> float:
    """Percent by which Shampoo at power 2 ends lower with whitened factors."""
    runs = [one for one in lines("shampoo_whitened") if (one["problem"], one["lr"], one["seed"]) == (problem, lr, seed)]
    found = {one["options"].get("whiten", False): one["final_loss"] for one in runs if "power" in one["options"]}
    return 100 * (1 - found[True] / found[False])


# Known shapes


def gradients(problem: str, base: str, method: str) -> float:
    """Gradients and products to the target at the best rate, the median over seeds."""
    text = landscapes.cell([one for one in lines("landscapes") if landscapes.key(one) == (problem, base, method)])
    return float(text.split()[0])


# The suite of benchmarks/anywhere


@cache
def suite() -> shares.Runs:
    """All of its runs."""
    return shares.grouped(read_cells(file("anywhere")))


def beside(method: str, problem: str, times: float = 1.0) -> float:
    """Final loss over the base's, at the base's tuned rate or so many times it."""
    ratio = shares.ratio(suite(), problem, method, times)
    assert ratio is not None
    return ratio


def held(method: str) -> tuple[float, int, float]:
    """Percent of cells in which a method is at most its base's equal, how many cells, the median ratio."""
    same = shares.summary(suite(), method).same
    part = shares.share(suite(), method, same)
    assert part is not None
    return 100 * part, len(same), median(same.values())


def worst(method: str, problem: str, times: float) -> float:
    """The largest ratio of all cells, which is that of this problem and rate."""
    same = shares.summary(suite(), method).same
    assert same[problem, times] == max(same.values()), (problem, times)
    return same[problem, times]


# Steps


def step(name: str, variant: str, over: str = "adamw", part: str = "median_ms", **of: Any) -> float:
    """Time of a step over another variant's."""
    return line(name, variant=variant, **of)[part] / line(name, variant=over, **of)[part]


def spike(name: str, variant: str, **of: Any) -> float:
    """The largest step over the median one."""
    one = line(name, variant=variant, **of)
    return one["largest_ms"] / one["median_ms"]


def on_gpu(problem: str, variant: str) -> float:
    """Milliseconds of a step on a GPU, as the table of `make bench-gpu` has it."""
    return first_page.of_gpu({(one["problem"], one["variant"]): one for one in gpu_table.read()}[problem, variant])


# Peers


@cache
def peers(problem: str) -> dict[str, Sweep]:
    """Contenders by name, each at the best of its rates."""
    return sweeps(list(read_peers(file(f"peers_{problem}")).values()))


def state(contender: str) -> float:
    """Bytes of state over bytes of parameters, byte LM."""
    return peers("byte_lm")[contender].of_best("state")


def middle(values: Iterable[float | None], of: Callable[[list[float]], float] = mean) -> float:
    """The mean, or another middle, of what is there."""
    return of([value for value in values if value is not None])
