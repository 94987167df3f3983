"""What finding bases and polar factors anew costs on a device, way by way, by side and number of matrices.

    python -m benchmarks.steps.bases --device cuda
    python -m benchmarks.steps.bases --sides 64 128 --counts 1 8 --repeats 5

The factors are of eigenvalues `k^-1.5` and have moved by a twentieth since their bases were found. Householder's QR,
matrix by matrix and in one call (torch has no batched kernel for it and loops); two Cholesky factorisations, with
triangular solves and with products by explicit inverses; and `linalg.basis.refresh` whole, in both ways. Of each the
median milliseconds for all matrices, `max |Q'Q - I|`, and the largest difference from Householder's in float64. Polar
factors are of matrices of singular values `1 / k` by `linalg.polar`, in each precision; their difference is
`1 - cosine`.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.shared.table import append, headed, machine, show
from benchmarks.steps.one_process import clock
from lightning_so.linalg import basis
from lightning_so.linalg.polar import polar
from lightning_so.linalg.precision import FullPrecision

RIDGE = 1e-2
#: Repeats that are not timed: the first call of a shape plans and allocates.
WARM = 2
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def moved(side: int, count: int) -> tuple[Tensor, Tensor]:
    """A factor, and the basis of what it was, `count` times, each of shape (count, side, side)."""
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(side, side, dtype=torch.float64, generator=generator))[0]
    F = (Q * torch.arange(1, side + 1, dtype=torch.float64) ** -1.5) @ Q.mT
    G = torch.randn(side, 8, dtype=torch.float64, generator=generator)
    F += 0.05 * F.trace() / G.square().sum() * G @ G.mT
    return F.float().repeat(count, 1, 1), Q.float().repeat(count, 1, 1)


def each(FQ: Tensor, Q: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """See `basis.by_householder`, a call for each matrix."""
    found = [basis.by_householder(*(X[i : i + 1] for X in (FQ, Q, order))) for i in range(len(FQ))]
    return torch.cat([Q for Q, _ in found]), torch.cat([good for _, good in found])


def by_inverses(FQ: Tensor, Q: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """See `basis.by_cholesky`, with products by explicit inverses of the roots."""
    A, Q = (X.gather(2, order[:, None].expand(X.shape)) for X in (FQ, Q))
    A, failed = _over_root(A, Q.mT @ A)
    Q, failed_again = _over_root(A, A.mT @ A)
    return Q, failed + failed_again == 0


def _over_root(A: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """A R^-1 of S = R' R, and 0 where there is one."""
    L, failed = torch.linalg.cholesky_ex(S)
    eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device).expand_as(S)
    return A @ torch.linalg.solve_triangular(L, eye, upper=False).mT, failed


WAYS: dict[str, basis.Factorisation] = {
    "Householder, each": each,
    "Householder, one call": basis.by_householder,
    "Cholesky twice, solves": basis.by_cholesky,
    "Cholesky twice, inverses": by_inverses,
}


def timed(work: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> tuple[float, Any]:
    """Median milliseconds, and the last result."""
    times, found = [], None
    for _ in range(WARM + repeats):
        begun = clock()
        found = work()
        times.append(clock() - begun)
    return 1e3 * median(times[WARM:]), found


@FullPrecision()
def bases(side: int, count: int, repeats: int, device: str) -> list[dict[str, Any]]:
    """A line a way."""
    F, Q0 = (X.to(device) for X in moved(side, count))
    FQ = (F + torch.diag_embed(basis.ridge(F, RIDGE))) @ Q0
    order = (Q0 * FQ).sum(1).argsort(dim=1, descending=True, stable=True)
    exact, _ = basis.by_householder(FQ[:1].double(), Q0[:1].double(), order[:1])
    works: dict[str, Callable[[], Tensor]] = {way: lambda how=how: how(FQ, Q0, order)[0] for way, how in WAYS.items()}
    for name, how in (("Householder", basis.by_householder), ("Cholesky", basis.by_cholesky)):
        works[f"refresh by {name}"] = lambda how=how: basis.refresh(F, Q0, strength=RIDGE, how=how).value
    lines = []
    for way, work in works.items():
        ms, Q = timed(work, repeats, clock(device))
        square = (Q.mT @ Q - torch.eye(side, device=device)).abs().amax()
        lines.append({"way": way, "ms": ms, "apart": float(square), "off": float((Q.double() - exact).abs().amax())})
    return [{"what": "basis", "side": side, "count": count, **line} for line in lines]


@FullPrecision()
def polars(count: int, rows: int, cols: int, repeats: int, device: str) -> list[dict[str, Any]]:
    """A line a precision."""
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, rows, dtype=torch.float64, generator=generator))[0] for n in (rows, cols))
    one = (U / torch.arange(1, rows + 1)) @ V.mT
    right, X, lines = polar(one[None])[0], one.float().repeat(count, 1, 1).to(device), []
    for name, precision in PRECISIONS.items():
        ms, Y = timed(partial(polar, X, precision=precision), repeats, clock(device))
        y = Y[0].double().cpu()
        off = 1 - float((y * right).sum() / y.norm() / right.norm())
        lines.append({"what": "polar", "side": rows, "cols": cols, "count": count, "way": name, "ms": ms, "off": off})
    return lines


def table(lines: list[dict[str, Any]]) -> Table:
    """A row a line."""
    heads = ["what", "way", "matrices", "ms", "each", "from orthogonal", "off"]
    found = headed(heads, "bases found anew, and polar factors: milliseconds for all matrices", left=2)
    for line in lines:
        shape = f"{line['count']} x {line['side']} x {line.get('cols', line['side'])}"
        apart = f"{line['apart']:.0e}" if "apart" in line else ""
        times = f"{line['ms']:.3f}", f"{line['ms'] / line['count']:.3f}"
        found.add_row(line["what"], line["way"], shape, *times, apart, f"{line['off']:.0e}")
    return found


def main() -> None:
    """Measure, print the table, append a JSON line a way and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sides", type=int, nargs="+", default=[64, 256, 768, 1024])
    add("--counts", type=int, nargs="+", default=[1, 4, 18, 48])
    add("--matrices", nargs="*", default=["32x768x768", "16x768x3072"], help="count x rows x columns, rows <= columns")
    add("--repeats", type=int, default=9)
    add("--device", default="cpu", help="cpu or cuda")
    add("--seconds", type=float, default=float("inf"), help="no size begins after them; those left out are named")
    add("--run", help="what the lines of one run have in common")
    add("--out", type=Path, default=Path("benchmarks/steps/results/bases.jsonl"), help="lines are appended")
    args = parser.parse_args()

    torch.set_num_threads(1)
    begun, lines, left_out = time.monotonic(), list[dict[str, Any]](), list[str]()
    sizes = [
        (f"{count} x {side} x {side}", partial(bases, side, count)) for side, count in product(args.sides, args.counts)
    ]
    sizes += [(text, partial(polars, *map(int, text.split("x")))) for text in args.matrices]
    for name, work in sizes:
        if time.monotonic() - begun > args.seconds:
            left_out.append(name)
        else:
            lines += work(args.repeats, args.device)
    show(table(lines))
    facts = {"repeats": args.repeats, **({} if args.run is None else {"run": args.run}), **machine(args.device)}
    append(args.out, ({**facts, **line} for line in lines))
    if left_out:
        print(f"left out after {args.seconds:.0f} s: {', '.join(left_out)}", file=sys.stderr)


if __name__ == "__main__":
    main()
