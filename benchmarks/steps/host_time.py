"""What a step takes of the host: an empty model of many small layers, in microseconds a step and block.

    python -m benchmarks.steps.host_time --blocks 100 --steps 120 --repeats 3

Layers are 4 x 4, all alike, or of shapes that all differ (sides of 2 and more); each has an input of its own, so that
nothing is deep. The matrices are so small that arithmetic hardly counts: a time is what Python and torch's dispatch
take, as on a device that waits for its host. All variants run side by side, as in `one_process`; what is told is a step
beyond AdamW's own, its passes included, over the steps after the first half.
"""

import argparse
from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.shared.methods import Settings
from benchmarks.shared.problems import Batch, Problem
from benchmarks.shared.table import append, headed, machine, show
from benchmarks.steps.one_process import PARTS, measure

VARIANTS = ["adamw", "soap", "muon", "kfac", "ekfac", "shampoo"]
SAMPLES, SIDE = 4, 4


class Layers(nn.Module):
    """Layers side by side, each with an input of its own."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out, bias=False) for n_in, n_out in shapes)

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What each layer gives."""
        return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]


def alike(blocks: int) -> list[tuple[int, int]]:
    """The shapes of equal layers."""
    return [(SIDE, SIDE)] * blocks


def different(blocks: int) -> list[tuple[int, int]]:
    """Shapes of which no two are the same, of sides as small as can be."""
    sides = range(2, 2 + isqrt(blocks - 1) + 1)
    return [(rows, cols) for rows in sides for cols in sides][:blocks]


SHAPES = {"alike": alike, "different": different}


def problem(name: str, blocks: int) -> Problem:
    """The empty model as a problem; its loss is the mean over samples of all outputs' squares."""
    shapes = SHAPES[name](blocks)

    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Layers(shapes)

    def draw(generator: torch.Generator) -> Batch:
        inputs = [torch.randn(SAMPLES, n_in, generator=generator) for n_in, _ in shapes]
        return inputs, torch.empty(0)  # pyright: ignore[reportReturnType]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return torch.stack([out.square().sum() for out in model(batch[0])]).sum() / SAMPLES

    return Problem(name, model, draw, loss, [], 0, "squares")


def beyond(record: dict[str, Any], base: dict[str, Any], blocks: int) -> dict[str, Any]:
    """Microseconds a step and block that a variant takes beyond the base, over the second half of the steps."""

    def steady(one: dict[str, Any]) -> float:
        later = one["step_ms"][len(one["step_ms"]) // 2 :]
        return sum(later) / len(later)

    parts = {part: 1e3 * (record["parts_ms"][part] - base["parts_ms"][part]) / blocks for part in PARTS}
    step = 1e3 * (steady(record) - steady(base))
    return {"step_us": step, "block_us": step / blocks, "parts_us": parts}


def table(lines: list[dict[str, Any]]) -> Table:
    """A row a variant; parts are a block's, over all steps."""
    heads = ["layers", "variant", "us a step", "us a block", *(part.replace("_", "-") for part in PARTS)]
    found = headed(heads, "host time beyond AdamW's; of a block by parts of a step", left=2)
    for line in lines:
        parts = [f"{line['parts_us'][part]:.1f}" for part in PARTS]
        found.add_row(line["layers"], line["variant"], f"{line['step_us']:.0f}", f"{line['block_us']:.1f}", *parts)
    return found


def main() -> None:
    """Measure, print the table, append a JSON line a variant and kind of layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--layers", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    add("--blocks", type=int, default=100)
    add("--variants", nargs="+", default=VARIANTS, help="the first is what others are compared with")
    add("--steps", type=int, default=120)
    add("--repeats", type=int, default=3)
    add("--out", type=Path, default=Path("benchmarks/steps/results/host_time.jsonl"), help="lines are appended")
    args = parser.parse_args()

    torch.set_num_threads(1)
    facts = {"blocks": args.blocks, "steps": args.steps, "repeats": args.repeats, **machine("cpu")}
    lines = []
    for name in args.layers:
        base, *others = measure(
            problem(name, args.blocks), args.variants, Settings(1e-3, steps=args.steps), args.repeats
        )
        lines += [
            {"layers": name, "variant": r["variant"], "base_ms": base["median_ms"], **beyond(r, base, args.blocks)}
            for r in others
        ]
    show(table(lines))
    append(args.out, ({**facts, **line} for line in lines))


if __name__ == "__main__":
    main()
