"""Conjugate gradients: a symmetric positive system from products alone, and where it is found not to be positive.

Legend: n numbers of this rank, i iterations.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.linalg.vectors import Space

Product = Callable[[Tensor], Tensor]
#: A residual with less than this share of the length of b is none.
TOLERANCE = 1e-5
#: Progress per iteration, relative to all so far, that is too little to go on; over this many iterations at least.
PROGRESS, WINDOW = 5e-4, 10
#: Iterates are kept where the iteration is the next power of this.
SPACING = 1.3
#: A curvature of less than this share of the largest one met is none.
FLAT = 1e-12


@dataclass(frozen=True)
class Iterate:
    """A point on the way.

    Attributes:
        iteration: i.
        value: x_i, shape (n,).
        change: q_i.
    """

    iteration: int
    value: Tensor
    change: float


@dataclass(frozen=True)
class Solved:
    """What conjugate gradients have found.

    Attributes:
        value: x, shape (n,); where the first direction bends down already, that direction p.
        iterations: i.
        residual: `|b - A x| / |b|`, as the recursion has it.
        change: `q(x) = x'A x / 2 - b'x`.
        why: Why it stopped: "progress", "residual", "iterations", "negative" (curvature) or "broken" (not finite).
        rest: `b - A x`, as the recursion has it, shape (n,).
        direction: The last direction p that a product was taken of, shape (n,).
        curvature: `p'A p / p'p`; 0 before the first product.
        before: `b - A x` before the last step, shape (n,).
        kept: Iterates on the way, the last one among them.
    """

    value: Tensor
    iterations: int
    residual: float
    change: float
    why: str
    rest: Tensor
    direction: Tensor
    curvature: float
    before: Tensor
    kept: tuple[Iterate, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every product was finite; else `value` is the last iterate before the first that was not."""
        return self.why != "broken"


def stalled(changes: Sequence[float]) -> bool:
    """Whether the model has stopped to fall: Martens' rule.

        w = max(10, i // 10):   i > w,   q_i < 0,   (q_i - q_{i-w}) / q_i < 5e-4 w

    The variant with w on the right, relative to q_i, as in the paper; not relative to `q_i - q_0`.

    Source: Martens 2010, section 4.4.

    Args:
        changes: q_0 to q_i.

    Returns:
        Whether it has.
    """
    i = len(changes) - 1
    window = max(WINDOW, i // 10)
    if i <= window or not changes[i] < 0:
        return False
    return (changes[i] - changes[i - window]) / changes[i] < PROGRESS * window


def cg(
    product: Product,
    b: Tensor,
    space: Space,
    *,
    steps: int,
    start: Tensor | None = None,
    first: Tensor | None = None,
    precondition: Product | None = None,
    tolerance: float = TOLERANCE,
    progress: bool = True,
    keep: int = 0,
) -> Solved:
    """Minimise `q(x) = x'A x / 2 - b'x` along directions that are conjugate, one product each.

        a = r'p / p'A p,   x <- x + a p,   r <- r - a A p,   z = M^-1 r,   p <- z - (z'A p / p'A p) p

    Both quotients are right wherever p came from, so that a solve can be gone on with from another's last direction;
    where p is M^-1 r at first they are those of Hestenes and Stiefel. Inner products are sums over ranks in float64,
    and whatever is decided is decided by them.

    Source: Hestenes and Stiefel 1952; Nocedal and Wright 2006, algorithm 5.3; the stop, warm start and kept iterates
    of Martens 2010.

    Args:
        product: `v -> A v`, A symmetric; one call an iteration, and one for a start.
        b: The right side, shape (n,).
        space: What inner products are.
        steps: Most iterations.
        start: x at first, zero without one.
        first: p at first, `M^-1 r` without one.
        precondition: `v -> M^-1 v`, M symmetric and positive; none for the identity.
        tolerance: Of the residual, relative to b.
        progress: Whether `stalled` stops it.
        keep: How many of the iterates at `ceil(1.3^j)` are kept, the latest ones: a vector each.

    Returns:
        What was found; never raises for numbers.
    """
    x = torch.zeros_like(b) if start is None else start.clone()
    r = b.clone() if start is None else b - product(start)
    precondition = precondition or (lambda v: v)
    bb, rr, xb, xr = _dots(space, [(b, b), (r, r), (x, b), (x, r)])
    changes, curvature, largest = [-(xb + xr) / 2], 0.0, 0.0
    z = precondition(r)
    p, before, kept = z if first is None else first, r, deque[Iterate](maxlen=max(keep, 1))
    i, next_kept, why = 0, 1, "iterations"
    if not all(map(math.isfinite, (bb, rr, changes[0]))):
        r, rr, why, steps = torch.zeros_like(b), 0.0, "broken", 0
    elif rr <= tolerance**2 * bb:
        why, steps = "residual", 0
    while i < steps:
        Ap = product(p)
        pAp, pp, rp = _dots(space, [(p, Ap), (p, p), (p, r)])
        if not all(map(math.isfinite, (pAp, pp, rp))):
            why = "broken"
            break
        if pp == 0:
            why = "residual"
            break
        curvature = pAp / pp
        largest = max(largest, abs(curvature))
        if curvature <= FLAT * largest:
            why = "negative"
            break
        a = rp / pAp
        after = torch.add(r, Ap, alpha=-a)
        z = precondition(after)
        length, zAp = _dots(space, [(after, after), (z, Ap)])
        if not math.isfinite(length) or not math.isfinite(zAp):
            why = "broken"
            break
        x, before, r, rr = torch.add(x, p, alpha=a), r, after, length
        i += 1
        changes.append(changes[-1] - a * rp / 2)
        if i >= next_kept:
            next_kept = _next(i)
            kept.append(Iterate(i, x, changes[-1]))
        if rr <= tolerance**2 * bb:
            why = "residual"
            break
        if progress and stalled(changes):
            why = "progress"
            break
        if i < steps:
            p = torch.add(z, p, alpha=-zAp / pAp)
    if why == "negative" and i == 0:
        x = p
    elif not kept or kept[-1].iteration < i:
        kept.append(Iterate(i, x, changes[-1]))
    residual = math.sqrt(rr / bb) if bb > 0 else 0.0
    return Solved(x, i, residual, changes[-1], why, r, p, curvature, before, tuple(kept) if keep else ())


def _next(i: int) -> int:
    """The smallest `ceil(1.3^j)` beyond i."""
    return math.ceil(SPACING ** (math.floor(math.log(i, SPACING) + 1e-9) + 1))


def _dots(space: Space, pairs: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """Inner products of pairs: local sums in float64, and one sum over ranks."""
    left, right = {}, {}
    for x, y in pairs:
        left.setdefault(id(x), (len(left), x))
        right.setdefault(id(y), (len(right), y))
    found = space.gram(*(torch.stack([v for _, v in side.values()]) for side in (left, right))).cpu()
    return [float(found[left[id(x)][0], right[id(y)][0]]) for x, y in pairs]
