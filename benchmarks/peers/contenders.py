"""Who is compared: a name, the package that it needs, how it is built, and the middle of its sweep."""

import argparse
import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

import torch
from torch import nn

from benchmarks.peers import installed
from benchmarks.shared.methods import METHODS, WARMUP, Contender, Settings
from examples.byte_lm import warmup_cosine

#: The middle of a sweep where nothing else is known: that of AdamW and what has the length of its updates.
RATE = 3e-3


@dataclass(frozen=True)
class Entry:
    """One that is compared.

    Attributes:
        module: What must be there to be imported.
        make: A model's optimizers, from the model and settings.
        rate: The middle of its sweep.
        twice: Whether gradients need their graph.
    """

    name: str
    module: str
    make: Callable[[nn.Module, Settings], dict[str, Any]]
    rate: float = RATE
    twice: bool = False

    @property
    def there(self) -> bool:
        """Whether its package is installed."""
        return importlib.util.find_spec(self.module.partition(".")[0]) is not None

    @property
    def package(self) -> dict[str, str]:
        """The package's name and version."""
        root = self.module.partition(".")[0]
        names = packages_distributions().get(root, [root])
        try:
            return {"package": names[0], "version": version(names[0])}
        except PackageNotFoundError:
            return {"package": root, "version": "unknown"}

    def contender(self, model: nn.Module, settings: Settings) -> Contender:
        """It on a model, warm-up and cosine included, the same for everyone."""
        parts = self.make(model, settings)
        schedules = [
            torch.optim.lr_scheduler.LambdaLR(o, lambda step: warmup_cosine(step, total=settings.steps, warmup=WARMUP))
            for o in parts["optimizers"]
        ]
        return Contender(schedules=schedules, **parts)


#: Middles of another size are the packages' own defaults, torch Muon's best for Muons of its kind, and SGD's size for
#: Shampoo with the length of SGD's updates.
PEERS = (
    Entry("adamw", "torch", METHODS["adamw"]),
    Entry("torch_muon", "torch", METHODS["torch_muon_fp32"], 2e-2),
    Entry("torch_muon_adamw", "torch", METHODS["torch_muon_adamw"]),
    Entry("heavyball_soap", "heavyball", installed.heavyball_soap),
    Entry("heavyball_psgd", "heavyball", installed.heavyball_psgd, 1e-3),
    Entry("heavyball_muon", "heavyball", installed.heavyball_muon, 2e-2),
    Entry("pytorch_optimizer_soap", "pytorch_optimizer", installed.pytorch_optimizer_soap),
    Entry("pytorch_optimizer_shampoo", "pytorch_optimizer", installed.pytorch_optimizer_shampoo, 3e-2),
    Entry("pytorch_optimizer_muon", "pytorch_optimizer", installed.pytorch_optimizer_muon, 2e-2),
    Entry("pytorch_optimizer_adahessian", "pytorch_optimizer", installed.pytorch_optimizer_adahessian, 1e-1, True),
    Entry("distributed_shampoo", "distributed_shampoo", installed.distributed_shampoo),
)
OURS = tuple(Entry(name, "lightning_so", METHODS[name]) for name in ("soap", "muon", "kfac", "ekfac", "shampoo"))
ENTRIES = {entry.name: entry for entry in (*PEERS, *OURS)}


def dotted(text: str) -> Entry:
    """`package.module:function` or `package.module:function@rate`, a contender of one's own, under that name.

    The function takes a list of (name, parameter) and a learning rate, and gives an optimizer.

    Raises:
        ArgumentTypeError: No module and function, or a rate that is not a number above 0.
    """
    path, _, rate = text.partition("@")
    module, _, function = path.partition(":")
    if not module or not function:
        raise argparse.ArgumentTypeError(
            f"--with {text!r}: give package.module:function, or package.module:function@rate"
        )
    try:
        middle = float(rate or RATE)
    except ValueError:
        middle = 0.0
    if not middle > 0:
        raise argparse.ArgumentTypeError(f"--with {text!r}: the rate, the middle of its sweep, is a number above 0")

    def make(model: nn.Module, settings: Settings) -> dict[str, Any]:
        build = getattr(importlib.import_module(module), function)
        return {"optimizers": [build(list(model.named_parameters()), settings.lr)]}

    return Entry(path, module, make, middle)


def present(entries: Iterable[Entry]) -> list[Entry]:
    """Those whose packages are there; of each other one a line is printed."""
    found = []
    for entry in entries:
        if entry.there:
            found.append(entry)
        else:
            print(f"skipped: {entry.name}, as {entry.module} is not installed", flush=True)
    return found
