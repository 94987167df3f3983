"""One model, one learning rate, three runs: AdamW, AdamW with SOAP, AdamW with Muon. `python -m examples.demo`.

Seconds are wall seconds of training steps on all cores; validation is left out. The learning rate is AdamW's best
(3e-3). On a machine that does other work at the time the seconds say little, and a note says so.
"""

import argparse
import gc
import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar

from examples.byte_lm import ByteLM, ByteText
from examples.crossing import crossing
from examples.curves import Curve, Recorder, busy, plot
from lightning_so import SOAP, Muon, SecondOrder

POINTS = 10
VALIDATION_BATCHES = 5
WARMUP = 20

CONTENDERS: dict[str, Callable[[], SecondOrder | None]] = {
    "AdamW": lambda: None,
    "AdamW + SOAP": lambda: SecondOrder(SOAP(), print_plan=False),
    "AdamW + Muon": lambda: SecondOrder(Muon(), print_plan=False),
}


def train(name: str, second_order: SecondOrder | None, steps: int) -> Curve:
    """One run from the same seed; only the callback differs."""
    curve = Curve(name)
    pl.seed_everything(0, verbose=False)
    bar = RichProgressBar(refresh_rate=5) if find_spec("rich") else TQDMProgressBar(refresh_rate=5)
    plugin = [] if second_order is None else [second_order]
    trainer = pl.Trainer(
        max_steps=steps,
        callbacks=[*plugin, Recorder(curve, second_order), bar],
        val_check_interval=steps // POINTS,
        limit_val_batches=VALIDATION_BATCHES,
        num_sanity_val_steps=VALIDATION_BATCHES,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(ByteLM(total_steps=steps, warmup=WARMUP), ByteText())
    return curve


def rows(curves: list[Curve]) -> list[list[str]]:
    """The table: loss, steps and seconds to the first curve's final loss, step times, memory."""
    base = curves[0]
    target = base.losses[-1]

    def share(at: float | None, total: float, unit: str) -> str:
        """A crossing and its share of the first curve's total."""
        return "-" if at is None else f"{at:.0f}{unit} ({at / total:.0%})"

    return [
        [
            c.name,
            f"{c.losses[-1]:.3f}",
            share(crossing(c.steps, c.losses, target), base.steps[-1], ""),
            share(crossing(c.seconds, c.losses, target), base.seconds[-1], " s"),
            f"{1e3 * median(c.step_seconds):.0f}",
            f"{1e3 * max(c.step_seconds):.0f}",
            f"{c.extra_bytes / 1e6:.1f}",
        ]
        for c in curves
    ]


def show(curves: list[Curve]) -> None:
    """Print the table, with rich where it is installed."""
    head = [
        "method",
        "loss at\nthe end",
        "steps to\nAdamW's",
        "seconds\nto it",
        "median\nms",
        "largest\nms",
        "extra\nMB",
    ]
    body = rows(curves)
    if not find_spec("rich"):
        print(*("\t".join(row).replace("\n", " ") for row in [head, *body]), sep="\n")
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Byte language model at AdamW's own learning rate: nats per byte", box=SIMPLE_HEAD)
    for i, title in enumerate(head):
        table.add_column(title, justify="left" if i == 0 else "right")
    for row in body:
        table.add_row(*row)
    Console().print(table)


def warm_up() -> None:
    """One step of AdamW that nobody measures: torch imports a second's worth of modules at the first.

    What they have made stays: Python's collector, which looks at all there is once in a while, would take a third of a
    second for it, in the middle of a step of one of the runs.
    """
    model = ByteLM()
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    torch.optim.AdamW(model.parameters()).step()
    gc.collect()
    gc.freeze()


def main() -> None:
    """Run the three contenders one after the other, print the table, write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250, help=f"steps of each run, a multiple of {POINTS}")
    parser.add_argument("--out", type=Path, default=Path("demo_out/curves.png"), help="where the plot goes")
    args = parser.parse_args()
    if args.steps < POINTS or args.steps % POINTS:
        parser.error(f"--steps {args.steps}: a run has {POINTS} validations, so give a multiple of {POINTS}")

    for name in ("pytorch_lightning", "lightning.pytorch"):  # the one that was imported last is the one that speaks
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*treespec, LeafSpec.*"):
        warnings.filterwarnings("ignore", message=message)

    warm_up()
    curves = []
    for name, contender in CONTENDERS.items():
        print(f"{name}: {args.steps} steps")
        curves.append(train(name, contender(), args.steps))
    show(curves)
    if any(map(busy, curves)):
        print("note: the machine was busy with other work; read the steps, not the seconds")
    plot(curves, args.out, "validation loss (nats per byte)")
    print(f"plot: {args.out}")


if __name__ == "__main__":
    main()
