"""Shampoo: one factor a dimension of a tensor, and the product of their inverse roots.

Legend: B blocks of a stack, T side of a tile, R entries along all other dimensions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.actions.moments import Base
from lightning_so.contract.block import Block, StackSpec
from lightning_so.contract.known import known
from lightning_so.contract.method import Action, Asked, Taps
from lightning_so.contract.pairing import all_solved, on_curvature, refuse_momentless
from lightning_so.contract.spread import Spread, Staggered
from lightning_so.contract.unit import Unit
from lightning_so.errors import ConfigError, check_count, check_range
from lightning_so.linalg import packed, tiles
from lightning_so.linalg.result import Result, Solved
from lightning_so.linalg.roots import eigenroots, inverse_root, root_cost


@dataclass
class Side:
    """One dimension of every tensor of a stack; inert.

    Attributes:
        dim: The dimension, counted without the blocks'.
        cuts: Its tiles; none for a side that keeps only its diagonal.
        factors: See `tiles.fold`. Replicated over ranks, saved.
        roots: Inverse roots, one (B, T, T) tensor a tile or (B, S) of its triangles, or none. Replicated over ranks,
            saved.
    """

    dim: int
    cuts: list[slice]
    factors: list[Tensor]
    roots: list[Tensor]

    def kept(self, roots: Tensor, unit: Unit) -> Tensor:
        """Roots (k, T, T) of a tile as they are kept."""
        return packed.as_kept(roots, self.roots[unit.tile].ndim)


@dataclass
class Stats:
    """What Shampoo keeps of a stack.

    Attributes:
        shape: Of the tensors.
        power: p of the roots F^(-1/p).
        sides: Those of more than one entry.
    """

    shape: tuple[int, ...]
    power: float
    sides: list[Side]


@known
@dataclass(frozen=True)
class Shampoo:
    """Multiply gradients (SGD), or turn updates (Adam), by an inverse root of the second moments of every dimension.

        F_i <- b F_i + (1 - b) g_(i) g_(i)',    P x = x *_1 F_1^(-1/p) ... *_k F_k^(-1/p)

    with g_(i) the unfolding of the gradient along dimension i, of k. Under SGD the result has the gradient's own
    length, block by block (SGD grafting), so that learning rate, momentum and decay keep their meaning; Adam is bent
    along P m at its own length, where p = k was better than the published 2 k. Until its first solve a block is on the
    base. `beta=1` is a sum and no average. Of a stack of matrices each is a tensor of its own.

    With `whiten` it is KL-Shampoo: F_i is that of the gradient multiplied along all other dimensions by the roots that
    are in force, S_j = F_j^(-1/p), or I before their first solve; sides that keep a diagonal have none. This is the
    variant of Distributed Shampoo, not HeavyBall's, which multiplies by S_j^(p/2) and divides by the other dimensions.
    Unlike there a whitened gradient keeps its length, or the scale of the loss would say how long the first, unwhitened
    ones are remembered. With `power=2` it multiplies by F_j^(-1/2), the published method's, and was better than
    without; at 2 k it was not.

    Source: Gupta, Koren and Singer 2018, arXiv 1802.09568, algorithm 2; Anil et al. 2020, arXiv 2002.09018, for
    grafting and the relative epsilon; Shi et al. 2023, arXiv 2309.06497, for tiles; Lin et al. 2025, arXiv 2509.03378,
    for KL-Shampoo.

    Attributes:
        beta: Decay b of the factors; 1 adds them up.
        epsilon: What is added to a factor before its root, relative to its largest diagonal entry.
        power: p; None takes 2 k where gradients are preconditioned, and k, at least 2, where updates are bent.
        merge: Fold all dimensions but the first into one, so that kernels are matrices.
        period: Largest interval between two solves of one unit, in steps.
        cap: Largest tile of a side; None takes 256 on CPU and 1024 on other devices.
        schedule: `Staggered()`, or `Synchronous()` for the textbook burst.
        whiten: Whether factors are those of whitened gradients (KL-Shampoo); takes a power of 2 or more.

    Example:
        >>> Shampoo(power=2).power
        2
    """

    beta: float = 0.95
    epsilon: float = 1e-6
    power: float | None = None
    merge: bool = False
    period: int = 20
    cap: int | None = None
    schedule: Spread = field(default_factory=Staggered)
    whiten: bool = False

    taps: ClassVar[Taps] = Taps.GRADS
    step_bound: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_range("Shampoo", "beta", self.beta, 0.0, 1.0)
        check_range("Shampoo", "epsilon", self.epsilon, 1e-12, 1.0)
        check_count("Shampoo", "period", self.period, 1, 100_000)
        if self.power is not None:
            check_range("Shampoo", "power", self.power, 0.5, 64)
        if self.whiten and self.power is not None and self.power < 2:
            # Of a diagonal gradient g, l_1 = g^2 l_2^(-2/p): what sets l_1 and l_2 apart grows by 2/p with every solve.
            raise ConfigError(
                f"Shampoo(power={self.power}, whiten=True): whitened factors diverge, use power=2 or more."
            )
        if self.cap is not None:
            check_count("Shampoo", "cap", self.cap, 2, 65_536)
        if not isinstance(self.schedule, Spread):
            raise ConfigError(f"Shampoo(schedule={self.schedule!r}): schedule must be Staggered() or Synchronous().")

    # ---------------------------------------------------------------- which blocks, which action

    def refuse(self, base: Base, group: dict) -> str | None:
        """See `contract.method.Method.refuse`."""
        return refuse_momentless("Shampoo", base, group)

    def exclude(self, base: Base, block: Block) -> str | None:
        """See `contract.method.Method.exclude`."""
        cap = self.cap_on(block.param.device)
        if all(not tiles.tiles(length, cap) for length in self._lengths(block).values()):
            return f"every dimension is longer than {tiles.LONG} tiles of {cap}: raise Shampoo(cap=...)"
        return None

    def describe(self, base: Base, group: dict, block: Block) -> str:
        """See `contract.method.Method.describe`."""
        cap = self.cap_on(block.param.device)
        sides = [tiles.label(tiles.tiles(length, cap)) for length in self._lengths(block).values()]
        action = self.action(base, group, block, True).value
        whitened = " of whitened factors" if self.whiten else ""
        return f"{action} by roots 1/{self._power(block, base):g}{whitened}; tiles {' and '.join(sides)}"

    def action(self, base: Base, group: dict, block: Block, warm: bool) -> Action:
        """See `contract.method.Method.action`."""
        return on_curvature(base, warm)

    def ready(self, base: Base, step: int, solved: list[int]) -> bool:
        """See `contract.method.Method.ready`: from the first solve of every side on."""
        return all_solved(solved)

    # ---------------------------------------------------------------- statistics

    def init(self, stack: StackSpec, base: Base) -> Stats:
        """See `contract.method.Method.init`."""
        count, block = len(stack.blocks), stack.blocks[0]
        place, sides = {"dtype": stack.dtype, "device": stack.home}, []
        for dim, length in self._lengths(block).items():
            cuts = tiles.tiles(length, self.cap_on(stack.device))
            factors = tiles.factors(cuts, length, count, triangles=stack.packed, **place)
            roots = [torch.eye(cut.stop - cut.start, **place) for cut in cuts]
            roots = [packed.pack(root) for root in roots] if stack.packed else roots
            sides.append(Side(dim, cuts, factors, [root.repeat(count, *[1] * root.ndim) for root in roots]))
        return Stats(self._shape(block), self._power(block, base), sides)

    def observe(self, stats: Stats, gradients: Tensor, rows: list[int] | None) -> None:
        """See `contract.method.ObservesGradients.observe`."""
        X = gradients.view(-1, *stats.shape)
        for side in stats.sides:
            factors = side.factors if rows is None else [F[rows] for F in side.factors]
            seen = self._whitened(stats, side, X, rows) if self.whiten else X
            unfolded = seen.movedim(side.dim + 1, 1).flatten(2)
            tiles.fold(factors, side.cuts, unfolded, 1 - self.beta or 1.0, column=False, keep=self.beta)
            if rows is not None:
                for F, part in zip(side.factors, factors, strict=True):
                    F[rows] = part

    def _whitened(self, stats: Stats, side: Side, X: Tensor, rows: list[int] | None) -> Tensor:
        """What a side's factor sees of X: the cached roots of all other sides with tiles multiplied, at X's length."""
        Y = X
        for other in stats.sides:
            if other is not side and other.cuts:
                Y = self._multiply(stats, other, Y, rows)
        return _at_length(Y, X)

    # ---------------------------------------------------------------- solve and apply

    def units(self, index: int, stack: StackSpec) -> list[Unit]:
        """See `contract.method.Method.units`: a tile of a dimension."""
        cap, order = self.cap_on(stack.device), len(self._lengths(stack.blocks[0]))
        return [
            Unit(index, row, side, tile, root_cost(w), packed.shape(w, triangles=stack.packed), kind=(order, w))
            for row in range(len(stack.blocks))
            for side, length in enumerate(self._lengths(stack.blocks[0]).values())
            for tile, w in enumerate(cut.stop - cut.start for cut in tiles.tiles(length, cap))
        ]

    def pace(self) -> tuple[int, Spread]:
        """See `contract.method.Method.pace`."""
        return self.period, self.schedule

    def step_cost(self, stack: StackSpec, action: Action) -> float:
        """See `contract.method.Method.step_cost`."""
        block, cap = stack.blocks[0], self.cap_on(stack.device)
        lengths = self._lengths(block).values()
        turn = float(block.shape.numel() * sum(min(length, cap) for length in lengths))
        whitening = (len(lengths) - 1) * turn if self.whiten else 0.0
        return whitening + (turn if action is Action.BASE else 2 * turn)

    def solve(self, asked: Sequence[Asked]) -> Solved:
        """See `contract.method.Solves.solve`: by eigenvalues, for whose iteration torch makes the host wait."""
        stats, unit = asked[0]
        F = torch.stack([stats.sides[unit.side].factors[unit.tile][unit.row] for stats, unit in asked])
        F = tiles.whole(F, stats.sides[unit.side].cuts[unit.tile])
        damping = self.epsilon * F.diagonal(dim1=1, dim2=2).amax(1)
        value, good = eigenroots(F, damping, stats.power)
        return Solved(stats.sides[unit.side].kept(value, unit), good & (damping > 0))

    def solve_afresh(self, stats: Stats, unit: Unit) -> Result:
        """See `contract.method.Solves.solve_afresh`."""
        side = stats.sides[unit.side]
        F = tiles.whole(side.factors[unit.tile][unit.row : unit.row + 1], side.cuts[unit.tile])
        damping = self.epsilon * F.diagonal(dim1=1, dim2=2).amax(1)
        if not bool(damping > 0):  # No gradient yet, or none that is a number: there is no root to keep.
            return Result(side.kept(F, unit)[0], ok=False)
        found = inverse_root(F, damping, stats.power)
        return Result(side.kept(found.value, unit)[0], found.ok, attempts=found.attempts, residual=found.residual)

    def swap_in(self, asked: Sequence[Asked], solved: Solved) -> None:
        """See `contract.method.Solves.swap_in`."""
        solved.replace([[stats.sides[unit.side].roots[unit.tile][unit.row]] for stats, unit in asked])

    def direction(self, stats: Stats, X: Tensor, rows: list[int] | None) -> Tensor:
        """See `contract.method.Method.direction`: P X at the length of X."""
        Y = X.view(-1, *stats.shape)
        for side in stats.sides:
            Y = self._multiply(stats, side, Y, rows)
        return _at_length(Y.reshape(X.shape), X)

    def _multiply(self, stats: Stats, side: Side, X: Tensor, rows: list[int] | None) -> Tensor:
        """`X *_i F_i^(-1/p)` along one dimension."""
        moved = X.movedim(side.dim + 1, 1)
        if not side.cuts:
            F = side.factors[0] if rows is None else side.factors[0][rows]
            roots = (F + self.epsilon * F.amax(1, keepdim=True)).clamp_min(torch.finfo(F.dtype).tiny)
            scaled = moved * roots.pow(-1 / stats.power).view(*F.shape, *[1] * (X.ndim - 2))
            return scaled.movedim(1, side.dim + 1)
        flat = moved.flatten(2)
        roots = side.roots if rows is None else [R[rows] for R in side.roots]
        parts = [tiles.whole(R, cut) @ flat[:, cut] for R, cut in zip(roots, side.cuts, strict=True)]
        return torch.cat(parts, 1).view(moved.shape).movedim(1, side.dim + 1)

    def tensors(self, stats: Stats) -> Iterator[tuple[str, Tensor]]:
        """See `contract.method.Method.tensors`."""
        yield from self.factors(stats)
        for side in stats.sides:
            for tile, root in enumerate(side.roots):
                yield f"{side.dim}.root.{tile}", root

    def factors(self, stats: Stats) -> Iterator[tuple[str, Tensor]]:
        """See `contract.method.Solves.factors`."""
        for side in stats.sides:
            for tile, F in enumerate(side.factors):
                yield f"{side.dim}.factor.{tile}", F

    def whole(self, stats: Stats, row: int) -> list[Tensor]:
        """See `contract.memory.KeepsTriangles.whole`."""
        return tiles.of_row(stats.sides, row)

    # ---------------------------------------------------------------- shapes

    def _shape(self, block: Block) -> tuple[int, ...]:
        return (block.rows, block.cols) if self.merge else tuple(block.shape)

    def _lengths(self, block: Block) -> dict[int, int]:
        """Dimension -> length, of those with more than one entry."""
        return {dim: length for dim, length in enumerate(self._shape(block)) if length > 1}

    def _power(self, block: Block, base: Base) -> float:
        order = len(self._lengths(block))
        return self.power or (2.0 * order if base.linear else max(2.0, order))

    def cap_on(self, device: torch.device) -> int:
        """The largest tile on a device."""
        return self.cap or tiles.default_cap(device)


def _at_length(Y: Tensor, X: Tensor) -> Tensor:
    """Y at the length of X, block by block."""
    dims = tuple(range(1, X.ndim))
    lengths = torch.linalg.vector_norm(Y, dim=dims, keepdim=True)
    tiny = torch.finfo(X.dtype).tiny
    return Y * (torch.linalg.vector_norm(X, dim=dims, keepdim=True) / lengths.clamp_min(tiny))
