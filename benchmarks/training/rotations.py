"""What rotating in fewer bits costs: final losses of SOAP where the factors of its rotations alone are rounded.

    python -m benchmarks.training.rotations --problems byte_lm autoencoder_mnist --seeds 0 1 2

"tf32" rounds what a rotation multiplies to 11 bits, as tensor cores do, and adds up in float32; "bf16" rounds it to 8,
and the result too, as a product of bfloat16 matrices does. Bases, factors and polar factors stay float32. It is
emulated, so that any processor shows the losses; it shows no times. One JSON line a run.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.shared.methods import Settings
from benchmarks.shared.problems import PROBLEMS, load
from benchmarks.training.grid import Run, train
from lightning_so.linalg import tiles
from lightning_so.linalg.precision import rounded
from tests.support.rounding import to_tf32

RATES = {"byte_lm": 5e-3, "autoencoder_mnist": 5e-3}
OUT = Path("benchmarks/training/results/rotations.jsonl")


def to_bf16(x: Tensor) -> Tensor:
    """The nearest number with seven bits of mantissa."""
    return x.bfloat16().to(x.dtype)


#: What is rounded before a product, and after it.
PRECISIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None] = {
    "fp32": None,
    "tf32": (to_tf32, lambda x: x),
    "bf16": (to_bf16, to_bf16),
}


@contextmanager
def rotating_in(precision: str) -> Iterator[None]:
    """Round the rotations inside: those that torch's own setting would round on a device with tensor cores."""
    rounding, plain = PRECISIONS[precision], tiles.turn
    if rounding is None:
        yield
        return
    before, after = rounding

    def turn(bases: list[Tensor], cuts: list[slice], X: Tensor, **more: bool) -> Tensor:
        # Of moments that enter a basis, in which nothing is rounded, it is not told.
        if not (cuts and rounded()):
            return plain(bases, cuts, X, **more)
        return after(plain([before(Q) for Q in bases], cuts, before(X), **more))

    own = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with mock.patch.object(tiles, "turn", turn):
            yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = own


def main() -> None:
    """Do the runs, seed by seed, and print each final loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", choices=list(PROBLEMS), nargs="+", default=list(RATES))
    parser.add_argument("--precisions", choices=list(PRECISIONS), nargs="+", default=list(PRECISIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=float, help="default: that of the other benchmarks")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        for problem, seed, precision in product(args.problems, args.seeds, args.precisions):
            steps, rate = load(problem).steps, args.lr or RATES.get(problem, 5e-3)
            with rotating_in(precision):
                found: dict[str, Any] = train(
                    Run(problem, "soap", seed, max(1, steps // 20), Settings(rate, steps=steps))
                )
            print(json.dumps({**found, "rotations": precision}), file=file, flush=True)
            print(f"{problem:<18} seed {seed}  {precision}  {found['loss_name']} {found['final_loss']}", flush=True)


if __name__ == "__main__":
    main()
