"""What computing in another way costs: final losses of SOAP with other bases, polar factors or rotations.

    python -m benchmarks.training.ways --problems byte_lm autoencoder_mnist --ways fp32 tf32 bf16 --seeds 0 1 2
    python -m benchmarks.training.ways --problems byte_lm --ways cholesky fp16 --seeds 0 1 2

"tf32" rounds what a rotation multiplies to 11 bits, as tensor cores do, and adds up in float32; "bf16" rounds it to 8,
and the result too, as a product of bfloat16 matrices does. Both are emulated. "cholesky" finds warm bases so, "fp16"
multiplies polar factors so, while blocks are bent. "fp32" is as usual. Any processor shows the losses; it shows no
times. One JSON line a run.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.shared.methods import Settings
from benchmarks.shared.problems import PROBLEMS, load
from benchmarks.training.grid import Run, train
from lightning_so import Ways
from lightning_so.core.device import choose
from lightning_so.linalg import tiles
from lightning_so.linalg.precision import rounded
from tests.support.rounding import to_tf32

RATES = {"byte_lm": 5e-3, "autoencoder_mnist": 5e-3}
OUT = Path("benchmarks/training/results/ways.jsonl")


def to_bf16(x: Tensor) -> Tensor:
    """The nearest number with seven bits of mantissa."""
    return x.bfloat16().to(x.dtype)


#: What is rounded before a product, and after it.
PRECISIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None] = {
    "fp32": None,
    "tf32": (to_tf32, lambda x: x),
    "bf16": (to_bf16, to_bf16),
}


#: What is computed in another way, and by no emulation.
WAYS = {"cholesky": Ways(refresh="cholesky"), "fp16": Ways(polar="fp16")}


def computing(way: str) -> AbstractContextManager:
    """Compute in a way inside.

    Args:
        way: One of the command line's.

    Returns:
        The context.
    """
    if way in PRECISIONS:
        return rotating_in(way)
    return mock.patch.object(choose, "USUAL", WAYS[way].over(choose.USUAL))


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
    parser.add_argument("--ways", choices=[*PRECISIONS, *WAYS], nargs="+", default=[*PRECISIONS, *WAYS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=float, help="default: that of the other benchmarks")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        for problem, seed, way in product(args.problems, args.seeds, args.ways):
            steps, rate = load(problem).steps, args.lr or RATES.get(problem, 5e-3)
            with computing(way):
                found: dict[str, Any] = train(
                    Run(problem, "soap", seed, max(1, steps // 20), Settings(rate, steps=steps))
                )
            print(json.dumps({**found, "way": way}), file=file, flush=True)
            print(f"{problem:<18} seed {seed}  {way}  {found['loss_name']} {found['final_loss']}", flush=True)


if __name__ == "__main__":
    main()
