"""Curves of trainings that stand side by side: recorded in the Trainer, drawn over steps and over seconds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.callbacks import Callback

from lightning_so import SecondOrder
from lightning_so.core.trust.memory import state_bytes


@dataclass
class Curve:
    """What one run leaves behind: the validation curve, the length of every step, the memory beside the optimizer."""

    name: str
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    extra_bytes: int = 0


class Recorder(Callback):
    """Fills a Curve; placed after SecondOrder so that its hooks are inside the measured step.

    Args:
        curve: What is filled.
        second_order: The callback, whose memory is noted.
        measure: What validation logs.
        clock: Gives seconds: of the wall, or of this process alone (`time.process_time`).
    """

    def __init__(
        self,
        curve: Curve,
        second_order: SecondOrder | None = None,
        measure: str = "val_loss",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.curve, self.second_order, self.measure, self.clock = curve, second_order, measure, clock
        self.begun = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        """Start the clock."""
        self.begun = self.clock()

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop the clock."""
        self.curve.step_seconds.append(self.clock() - self.begun)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a point to the curve; the sanity check before training is the point at step 0."""
        curve = self.curve
        curve.steps.append(trainer.global_step)
        curve.seconds.append(sum(curve.step_seconds))
        curve.losses.append(float(trainer.callback_metrics[self.measure]))
        if self.second_order is not None and not trainer.sanity_checking:
            parts = self.second_order.engines[0].parts
            curve.extra_bytes = state_bytes(parts.units, parts.matrices)


def busy(curve: Curve) -> bool:
    """Whether stalls of the machine went into a run: its mean step is far above its median one."""
    return sum(curve.step_seconds) > 1.25 * len(curve.step_seconds) * median(curve.step_seconds)


def plot(curves: Sequence[Curve], path: Path, label: str, *, log: bool = False) -> None:
    """Loss against steps and against seconds, side by side; the dotted line is the first curve's end.

    Args:
        curves: The runs.
        path: Of the picture.
        label: What the losses are.
        log: Whether their axis is logarithmic.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, unit in zip(axes, ("steps", "seconds"), strict=True):
        for curve in curves:
            axis.plot(getattr(curve, unit)[1:], curve.losses[1:], marker=".", label=curve.name)
        axis.axhline(curves[0].losses[-1], color="grey", linestyle=":", linewidth=1)
        axis.set_xlabel(unit)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(label)
    axes[0].set_yscale("log" if log else "linear")
    axes[0].legend()
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a picture, and close it.

    Args:
        figure: Of matplotlib.
        path: Where it goes.
    """
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    # Few colours: a third of the bytes, and no difference to the eye.
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
