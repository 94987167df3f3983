"""Methods on the whole vector where the shape of the loss is known: valleys, saddles, noise; tuned SGD and Adam beside.

    python -m benchmarks.curvature.landscapes --jobs 2

Everything runs at the same eight learning rates of its base, each twice the last, and at more while the best is at an
end; the second and third seed at the three rates around the first one's best. A cell holds gradient evaluations to the
target, those that methods take included, then steps: medians of the seeds at the best rate; then at how many of the
eight rates the first seed reaches it within the budget of evaluations that the problem has.
"""

import argparse
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.curvature.surfaces import LANDSCAPES
from lightning_so import OGR, AutoStep, FewDirections, QuadraticModel, attach
from lightning_so.contract.vector_method import VectorMethod

#: Rates of a grid, and how many more there may be on either side.
GRID, MORE = 8, 4
#: What a base is called that has no method behind it.
ALONE = "alone"
#: A value this many times larger than at the start is on its way to infinity.
LOST = 1e4


@dataclass(frozen=True)
class Variant:
    """What is compared.

    Attributes:
        base: "SGD" or "Adam".
        momentum: SGD's.
        method: What is behind it, if anything.
    """

    base: str
    momentum: float = 0.0
    method: VectorMethod | None = None

    @property
    def optimizer(self) -> str:
        """The base in words."""
        return f"SGD {self.momentum:g}" if self.base == "SGD" else self.base

    @property
    def name(self) -> str:
        """The method in words: k, and what is not the default."""
        if self.method is None:
            return ALONE
        method: Any = self.method
        kept = [f for f in fields(method) if f.name == "k" or getattr(method, f.name) != f.default]
        return f"{type(method).__name__}({', '.join(f'{f.name}={getattr(method, f.name)}' for f in kept)})"


def variants(dimension: int, settings: dict[str, Any], only: list[str]) -> list[Variant]:
    """Everything that is compared; constant curvature stands behind what it is the ablation of."""
    methods: list[Any] = [FewDirections(k=k, every=every) for k in (2, 5) for every in (1, 10)]
    methods += [OGR(k=k) for k in (1, 2, 5)] + [OGR(k=k, curvature="same-batch") for k in (2, 5)]
    methods += [AutoStep(), QuadraticModel()]
    behind_adam = (FewDirections(k=min(5, dimension)), OGR(k=1), OGR(k=2), OGR(k=5), AutoStep())
    found = [Variant("SGD", momentum) for momentum in (0.0, 0.9, 0.99)] + [Variant("Adam")] if ALONE in only else []
    for method in methods:
        if type(method).__name__ not in only or getattr(method, "k", 0) > dimension:
            continue
        too = method in behind_adam
        method = replace(method, **{f.name: settings[f.name] for f in fields(method) if f.name in settings})
        # The mean of one stride is that stride.
        alone = method.curvature == "same-batch" or getattr(method, "k", 2) == 1
        for one in [method] if alone else [method, replace(method, curvature="constant")]:
            found.append(Variant("SGD", 0.0 if isinstance(method, QuadraticModel) else 0.9, one))
            if too:
                found.append(Variant("Adam", 0.0, one))
    return list(dict.fromkeys(found))


def run(problem: str, variant: Variant, rate: float, seed: int) -> dict[str, Any]:
    """One training, until the target is reached or evaluations are used up."""
    landscape = LANDSCAPES[problem]
    surface, generator = landscape.make(seed), torch.Generator().manual_seed(seed)
    if variant.base == "SGD":
        optimizer = torch.optim.SGD(surface.parameters(), lr=rate, momentum=variant.momentum, foreach=False)
    else:
        optimizer = torch.optim.Adam(surface.parameters(), lr=rate, foreach=False)
    if variant.method is not None:
        attach(surface, optimizer, variant.method)
    calls = steps = 0
    batch = ()

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = surface(*batch)
        loss.backward()
        return loss

    value = surface.value()
    bound = LOST * max(abs(value), abs(landscape.target))
    while calls < landscape.budget and landscape.target < value < bound:
        batch = surface.draw(generator)
        optimizer.step(closure)
        steps += 1
        value = surface.value()
    reached = value <= landscape.target
    return {"evaluations": calls if reached else None, "steps": steps, "value": value if value < bound else None}


def middle(runs: Iterable[dict[str, Any]], name: str) -> float:
    """The median of something; None is infinite."""
    return median(math.inf if run[name] is None else run[name] for run in runs)


def search(problem: str, variant: Variant, seeds: int) -> list[dict[str, Any]]:
    """A line a rate: the first seed at all of them, and at more while the best is at an end; the others around it."""
    torch.set_num_threads(1)
    first, found = LANDSCAPES[problem].rates[variant.base], {}

    def train(place: int, seed: int) -> None:
        found.setdefault(place, []).append(run(problem, variant, first * 2.0**place, seed))

    def best() -> int:
        return min(found, key=lambda place: [middle(found[place], name) for name in ("evaluations", "value")])

    for place in range(GRID):
        train(place, 0)
    while best() in (low := min(found), high := max(found)) and -MORE < low and high < GRID - 1 + MORE:
        train(low - 1 if best() == low else high + 1, 0)
    around = range(best() - 1, best() + 2) if found[best()][0]["evaluations"] is not None else ()
    for place in set(around) & set(found):
        for seed in range(1, seeds):
            train(place, seed)
    facts = {"problem": problem, "base": variant.optimizer, "method": variant.name}
    return [
        {
            **facts,
            "rate": first * 2.0**place,
            "grid": 0 <= place < GRID,
            **{name: [one[name] for one in runs] for name in runs[0]},
        }
        for place, runs in sorted(found.items())
    ]


def table(lines: list[dict[str, Any]]) -> Table:
    """A row a variant, a column a problem."""
    cells: dict[tuple, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        cells[line["method"], line["base"]][line["problem"]].append(line)
    problems = [name for name in LANDSCAPES if any(name in row for row in cells.values())]
    found = Table(
        title="gradient evaluations (steps) to the target at the best rate, of eight rates those that reach it"
    )
    for head in ("method", "base", *problems):
        found.add_column(head, justify="left" if head in ("method", "base") else "right", no_wrap=True)
    for (method, base), row in sorted(cells.items(), key=lambda item: (item[0][0] != ALONE, item[0])):
        found.add_row(method, base, *(cell(row[problem]) for problem in problems))
    return found


def cell(lines: list[dict[str, Any]]) -> str:
    """The best of the rates that all seeds have seen, if there are any, and how many of the grid reach the target."""
    if not lines:
        return ""
    seeds = max(len(line["steps"]) for line in lines)
    seen = [line for line in lines if len(line["steps"]) == seeds]
    evaluations, steps = min((medians(line, "evaluations"), medians(line, "steps")) for line in seen)
    if evaluations == math.inf:
        return "not reached"
    reached = sum(line["evaluations"][0] is not None for line in lines if line["grid"])
    return f"{evaluations:.0f} ({steps:.0f}), {reached}"


def key(line: dict[str, Any]) -> tuple[str, ...]:
    """Of which variant a line is."""
    return line["problem"], line["base"], line["method"]


def save(path: Path, lines: list[dict[str, Any]]) -> None:
    """Put the lines of one variant into a file, in the place of what it has of that variant."""
    kept = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    found = [line for line in kept if key(line) != key(lines[0])] + lines
    path.write_text("".join(json.dumps(line) + "\n" for line in found))


def medians(line: dict[str, Any], name: str) -> float:
    """The median over seeds, infinite for those that do not reach the target."""
    pairs = zip(line[name], line["evaluations"], strict=True)
    return median(math.inf if evaluations is None else value for value, evaluations in pairs)


def markdown(of: Table) -> str:
    """The same for a page."""
    columns = [list(column.cells) for column in of.columns]
    rows = [
        [str(column.header) for column in of.columns],
        ["---"] * len(columns),
        *map(list, zip(*columns, strict=True)),
    ]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def setting(text: str) -> tuple[str, Any]:
    """`name=value`."""
    name, value = text.split("=", 1)
    return name, float(value) if value == "inf" else json.loads(value)


def main() -> None:
    """Do the runs, write a line a rate, print the table of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--problems", nargs="+", choices=list(LANDSCAPES), default=list(LANDSCAPES))
    names = [ALONE, *(kind.__name__ for kind in (FewDirections, OGR, AutoStep, QuadraticModel))]
    add("--methods", nargs="*", choices=names, default=names)
    add(
        "--set",
        nargs="+",
        type=setting,
        default=[],
        metavar="NAME=VALUE",
        help="of methods that have it",
    )
    add("--seeds", type=int, default=3)
    add("--jobs", type=int, default=1, help="variants at a time, one thread each")
    add(
        "--out",
        type=Path,
        default=Path("benchmarks/curvature/results/landscapes.jsonl"),
        help="lines of the same variants are replaced",
    )
    add("--markdown", action="store_true", help="print the table for a page")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        pending = []
        for problem in args.problems:
            dimension = sum(weight.numel() for weight in LANDSCAPES[problem].make(0).parameters())
            for variant in variants(dimension, dict(args.set), args.methods):
                pending.append(pool.submit(search, problem, variant, args.seeds))
        for future in as_completed(pending):
            done = future.result()
            save(args.out, done)
            print(*(done[0][name] for name in ("problem", "base", "method")), cell(done), sep=" | ", file=sys.stderr)
    found = [json.loads(text) for text in args.out.read_text().splitlines()]
    if args.markdown:
        print(markdown(table(found)))
    else:
        Console(width=None if sys.stdout.isatty() else 180).print(table(found))


if __name__ == "__main__":
    main()
