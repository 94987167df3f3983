"""Packages that are built on Lightning, or whose models go into it, with and without second order at equal steps.

    make clients                               # the environment, and all of them
    python -m benchmarks.clients.train timm    # one

No rate was chosen for it: both sides have the package's own optimizer, with the same rate and the same random numbers.
The page docs/tested-with.md is written from the lines.
"""

import argparse
import importlib
import json
import logging
import math
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
try:
    importlib.import_module("torchvision")
except RuntimeError:  # Beside a torch that it was not built for it has no kernels, and asks for the names of some.
    for operator in ("nms", "qnms"):
        LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from benchmarks.clients.page import OUT, write  # noqa: E402
from benchmarks.clients.trainings import CLIENTS, STEPS  # noqa: E402
from lightning_so import EKFAC, KFAC, SOAP, ConfigError, Muon, SecondOrder, Shampoo  # noqa: E402
from lightning_so.callbacks.names import Callback  # noqa: E402

METHODS = {"": None, **{type(m).__name__: m for m in (SOAP(), KFAC(), EKFAC(), Muon(), Shampoo())}}
SEEDS = (0, 1)
#: Steps over which the last losses are averaged.
LAST = 10


class Losses(Callback):
    """Notes the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


def run(client: str, method: str, seed: int) -> dict[str, Any]:
    """One line."""
    torch.manual_seed(seed)
    training, losses, start = CLIENTS[client](), Losses(), time.process_time()
    second = [] if METHODS[method] is None else [SecondOrder(METHODS[method], print_plan=False)]
    torch.manual_seed(seed)
    line = {"client": client, "version": version(client), "what": training.what, "base": training.base}
    line |= {"method": method, "seed": seed, "steps": STEPS}
    try:
        training.fit([*second, losses])
    except ConfigError as error:
        return line | {"refused": str(error).partition(": ")[0]}
    assert len(losses.values) == STEPS, f"{client} made {len(losses.values)} steps"
    assert all(map(math.isfinite, losses.values)), f"{client}: the loss is not finite"
    line |= {
        "seconds": round(time.process_time() - start, 2),
        "first": losses.values[0],
        "last": sum(losses.values[-LAST:]) / LAST,
    }
    for engine in second and second[0].engines:
        report = engine.report
        assert report.step == STEPS, f"{client}: {report}"
        assert not report.skipped + report.undone, f"{client}: {report}"
        line |= {"coverage": round(report.coverage, 3), "solves": report.solves, "failures": report.failures}
    return line


def main() -> None:
    """Train those that are asked for, and write their lines and the page anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", choices=["all", *CLIENTS], default="all", help="which; all without any")
    asked = parser.parse_args().clients
    asked = list(CLIENTS) if "all" in asked else asked
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for client in asked:
        lines = [run(client, method, seed) for method in METHODS for seed in SEEDS]
        tested = {name: version(name) for name in ("torch", "lightning", "torchmetrics")}
        keep(OUT, client, [{**line, **tested} for line in lines])
        for line in lines:
            print(
                {key: line.get(key) for key in ("client", "method", "seed", "first", "last", "refused", "seconds")},
                flush=True,
            )
    write()


def keep(out: Path, client: str, lines: list[dict[str, Any]]) -> None:
    """Put these lines in the place of the client's last ones."""
    before = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    found = sorted([*(line for line in before if line["client"] != client), *lines], key=lambda line: line["client"])
    out.write_text("".join(json.dumps(line) + "\n" for line in found))


if __name__ == "__main__":
    main()
