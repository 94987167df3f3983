"""Trainings side by side: the same module, data and seed; what stands in front of the optimizer differs.

Seconds are those of one core, by the process's own clock: other work of the machine does not count.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from examples.crossing import crossing
from examples.curves import Curve, Recorder, plot, save
from lightning_so import KFAC, SOAP, Muon, SecondOrder

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}
METHODS = {"Muon": Muon, "SOAP": SOAP, "K-FAC": KFAC}


@dataclass
class Contender:
    """One training.

    Attributes:
        name: What it is called.
        make: Its module and data, made anew.
        callbacks: What stands in front of the optimizer.
        steps: How many it makes.
        more: Arguments of the Trainer.
    """

    name: str
    make: Callable[[], tuple[Any, Any]]
    callbacks: list[Any]
    steps: int
    more: dict[str, Any] = field(default_factory=dict)


def methods(
    make: Callable[[], tuple[Any, Any]], steps: int, names: Sequence[str] = ("SOAP", "K-FAC"), **more: Any
) -> list[Contender]:
    """AdamW alone, and behind methods with nothing set.

    Args:
        make: Module and data, made anew.
        steps: Of each.
        names: Of the methods.
        more: Arguments of the Trainer.
    """
    ours = {f"AdamW + {name}": [SecondOrder(METHODS[name](), print_plan=False, recorder=False)] for name in names}
    return [Contender(name, make, callbacks, steps, more) for name, callbacks in {"AdamW": [], **ours}.items()]


def arguments(about: str | None, name: str, **counts: int) -> argparse.Namespace:
    """The command line of a picture: `--out`, and its counts.

    Args:
        about: The module's docstring.
        name: Of the picture.
        counts: Options and their defaults.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, count in counts.items():
        parser.add_argument(f"--{option}", type=int, default=count)
    parser.add_argument("--out", type=Path, default=Path(f"demo_out/{name}.png"), help="where the picture goes")
    found = parser.parse_args()
    torch.set_num_threads(1)  # the layers are too small to be shared by threads
    quiet()
    return found


def quiet() -> None:
    """Have Lightning say nothing of what does not matter here."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*treespec, LeafSpec.*", ".*number of training batches.*"):
        warnings.filterwarnings("ignore", message=message)


def train(contender: Contender, measure: str) -> Curve:
    """One run from seed 0.

    Args:
        contender: Which.
        measure: What its validation logs.
    """
    curve = Curve(contender.name)
    pl.seed_everything(0, verbose=False)
    module, data = contender.make()
    callbacks = [*contender.callbacks, Recorder(curve, measure=measure, clock=time.process_time)]
    pl.Trainer(max_steps=contender.steps, callbacks=callbacks, **{**QUIET, **contender.more}).fit(module, data)
    return curve


def compare(
    contenders: Sequence[Contender],
    out: Path,
    label: str,
    *,
    measure: str = "val_loss",
    log: bool = True,
    first: int = 1,
) -> list[Curve]:
    """Train all, print what each needs to reach the first one's end, draw.

    Args:
        contenders: The trainings.
        out: The picture.
        label: What is measured, with its unit.
        measure: What validation logs.
        log: Whether its axis is logarithmic.
    """
    curves = [train(each, measure) for each in contenders]
    target = curves[0].losses[-1]
    print(f"{label}; steps and seconds to the first one's end")
    for curve in curves:
        steps, seconds = (crossing(places, curve.losses, target) for places in (curve.steps, curve.seconds))
        reached = "-" if steps is None or seconds is None else f"{steps:.0f} steps, {seconds:.1f} s"
        print(
            f"{curve.name:<20} {curve.losses[-1]:.4g} at the end, {min(curve.losses):.4g} at best; {reached} "
            f"(all: {curve.seconds[-1]:.1f} s)"
        )
    plot(curves, out, label, log=log)
    print(f"picture: {out}")
    return curves


def finish(figure: Any, axis: Any, path: Path) -> None:
    """Add grid and legend, write the picture, and say where it is.

    Args:
        figure: Of matplotlib.
        axis: Its one axis.
        path: Of the picture.
    """
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)
    print(f"picture: {path}")
