"""A table of rare features: which module of Python's standard library a function is of, from the names in it."""

import re
import sysconfig
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.anywhere.drawing import drawn
from benchmarks.shared.problems import Problem, seeded

MODULES, NAMES, WIDTH = 60, 3000, 256


@cache
def functions() -> tuple[Tensor, Tensor]:
    """Functions of the 60 modules that have most: whether each of 3,000 names is in it, (N, 3000), and the module, (N).

    The names are the most frequent. Half of them are in less than one function of 300.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    bodies = {file.stem: re.split(r"^ *def ", file.read_text(errors="replace"), flags=re.M)[1:] for file in files}
    kept = sorted(sorted(bodies, key=lambda module: -len(bodies[module]))[:MODULES])
    found = [(i, set(re.findall(r"[A-Za-z_]\w+", body))) for i, module in enumerate(kept) for body in bodies[module]]
    counts = Counter(name for _, names in found for name in sorted(names))
    column = {name: i for i, (name, _) in enumerate(counts.most_common(NAMES))}
    table = torch.zeros(len(found), NAMES)
    for row, (_, names) in enumerate(found):
        table[row, [column[name] for name in names if name in column]] = 1.0
    return table, torch.tensor([module for module, _ in found])


def network() -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(NAMES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, MODULES))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor], reduction: str = "mean") -> Tensor:
    """Of the module."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction=reduction)


def rare_features() -> Problem:
    """Scored on every third function of those that are trained on."""
    table, modules = functions()
    batch = drawn(table, modules, size=256)
    held = [(table[::3], modules[::3])]
    return Problem("rare_features", seeded(network), batch, cross_entropy, held, 300, "cross-entropy")
