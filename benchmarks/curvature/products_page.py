"""The table of `benchmarks.curvature.products`, from its lines: on a terminal, and as a page of the documentation."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

SETTINGS = {
    "eager": "eager",
    "sdpa": "`scaled_dot_product_attention`",
    "checkpoint": "checkpoint",
    "checkpoint reentrant": "checkpoint, `use_reentrant=True`",
    "compile": "`torch.compile` (aot_eager)",
    "bf16 autocast": "bf16 autocast",
    "ddp": "DDP, 2 ranks",
    "fsdp2": "FSDP2, 2 ranks",
    "zero 1": "DeepSpeed ZeRO-1, 2 ranks",
    "zero 2": "DeepSpeed ZeRO-2, 2 ranks",
    "zero 3": "DeepSpeed ZeRO-3, 2 ranks",
}
BACKENDS = ("forward difference", "central difference", "double backward", "gauss-newton")
#: An error from which a product is wrong.
WRONG = 0.2

HEAD = """# Where curvature-vector products work

This page shows which products work where, how exact they are and what they cost. Written by
`python -m benchmarks.curvature.products`, not by hand, from
[its results](../benchmarks/curvature/results/products.jsonl).

A transformer of two blocks in float32, 2 ranks of gloo where it says so, torch {torch}. Each cell: the error relative
to the same product in float64 on one process (`|found - exact| / |exact|`, a random direction), and the cost of one
more product in gradient evaluations (a forward and a backward pass), counted for differences, in CPU time for the
others. Differences take the gradient of the training step as it is; double backward and Gauss-Newton differentiate the
graph of this rank's outputs. `CurvatureMonitor` and `SharpnessGuard` take differences. With bf16 their steps are 100
times larger.

"""

Lines = dict[tuple[str, str], dict[str, Any]]


def read(path: Path) -> Lines:
    """The latest line of each setting and backend."""
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return {(line["setting"], line["backend"]): line for line in lines}


def rows(lines: Lines) -> tuple[list[list[str]], list[str]]:
    """Cells, by setting, and what is said where something fails."""
    said: list[str] = []
    found = []
    for setting, name in SETTINGS.items():
        cells = [_cell(lines.get((setting, backend)), said) for backend in BACKENDS]
        found.append([name, *cells])
    return found, said


def _cell(line: dict[str, Any] | None, said: list[str]) -> str:
    if line is None:
        return "not measured"
    if line["error"] is None:
        if line["why"] not in said:
            said.append(line["why"])
        return f"fails ({said.index(line['why']) + 1})"
    told = f"{line['error']:.1e}, {line['gradients']:.1f}"
    if line["error"] < WRONG:
        return told
    return f"wrong: {told}" + ("; of one rank's samples" if line["of_this_rank"] < line["error"] / 10 else "")


def table(lines: Lines) -> Table:
    """For a terminal."""
    found, said = rows(lines)
    out = Table(title="error relative to float64, gradient evaluations", caption="\n".join(_numbered(said)))
    for head in ("", *BACKENDS):
        out.add_column(head)
    for row in found:
        out.add_row(*row)
    return out


def page(lines: Lines) -> str:
    """For the documentation."""
    found, said = rows(lines)
    text = HEAD.format(torch=next(reversed(lines.values()))["torch"])
    text += "\n".join(f"| {' | '.join(row)} |" for row in (["", *BACKENDS], ["---"] * (1 + len(BACKENDS)), *found))
    return text + "\n\nWhat is said where it fails:\n\n" + "\n".join(_numbered(said)) + "\n"


def _numbered(said: list[str]) -> list[str]:
    return [f"{number}. {why}" for number, why in enumerate(said, 1)]
