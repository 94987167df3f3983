"""SOAP: the user's Adam in the eigenbasis of Shampoo's factors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.actions.moments import Base
from lightning_so.contract.block import Block, StackSpec
from lightning_so.contract.known import known
from lightning_so.contract.method import Action, Asked, Taps, Turned
from lightning_so.contract.pairing import all_solved
from lightning_so.contract.spread import Spread, Staggered
from lightning_so.contract.unit import Unit
from lightning_so.contract.ways import ByDevice, Ways
from lightning_so.errors import ConfigError, check_choice, check_count, check_range
from lightning_so.linalg import tiles
from lightning_so.linalg.basis import (
    CALLS,
    Factorisation,
    by_cholesky,
    by_householder,
    decompose,
    refresh,
    refresh_cost,
)
from lightning_so.linalg.polar import polar_cost
from lightning_so.linalg.result import Result, Solved

SIDES = ("rows", "cols")


@dataclass
class Side:
    """Factors and bases of one side of every matrix of a stack; inert.

    Attributes:
        cuts: The tiles; empty for a side that keeps only its diagonal.
        factors: See `tiles.fold`. Replicated over ranks, saved.
        bases: One (B, T, T) tensor a tile, or none; perhaps in float16. Replicated over ranks, saved.
    """

    cuts: list[slice]
    factors: list[Tensor]
    bases: list[Tensor]


@dataclass
class Stats:
    """What SOAP keeps of a stack.

    Attributes:
        sides: Its row side and its column side.
        ways: How it is computed.
    """

    sides: tuple[Side, Side]
    ways: Ways = field(default_factory=Ways)


@known
@dataclass(frozen=True)
class SOAP(ByDevice):
    """Run the base optimizer in the eigenbasis of L = EMA(G G') and R = EMA(G' G), bent until that basis is warm.

        g' = Q_L' g Q_R;    d = base(g');    p <- p0 (1 - lr wd) + Q_L d Q_R'

    All parameters of two or more dimensions take part; convolutions are folded to matrices, and stacks of matrices are
    taken one by one. The factors are not debiased: neither a basis nor the start of the second moment depends on their
    scale.

    With `whiten` it is KL-SOAP: each factor is that of gradients divided by the roots of the other's eigenvalues r,

        L = EMA(X X'),    X = G Q_R diag((r + 1e-4 mean r) / mean r)^(-1/2),    r = diag(Q_R' R Q_R),

    and R likewise. Eigenvalues are those of every step: with those of the last solves nothing is gained.

    Source: Vyas et al. 2024, arXiv 2409.11321, algorithm 3; Lin et al. 2025, arXiv 2509.03378, for whitened factors;
    the bent start, the second moment from the factors, the tie-breaking ridge and the age-proportional staggered
    schedule are this project's.

    Attributes:
        period: Largest interval between two solves of one unit, in steps.
        beta: Decay of the factors' moving average.
        start: Step at which blocks begin to rotate; hidden matrices are bent and others bare before.
        ridge: Tie-breaking ridge of every solve, relative to the factor's mean diagonal.
        cap: Largest tile of a side; None takes 256 on CPU and 1024 on other devices.
        schedule: `Staggered()`, or `Synchronous()` for the textbook burst.
        polish: Whether a rotated update d of a hidden matrix becomes `|d| O / |O|`, `O = polar(d)` (SOAP-Muon).
        whiten: Whether factors are those of whitened gradients (KL-SOAP).

    Example:
        >>> SOAP(period=32).period
        32
    """

    period: int = 50
    beta: float = 0.95
    start: int = 50
    ridge: float = 1e-2
    cap: int | None = None
    schedule: Spread = field(default_factory=Staggered)
    polish: bool = False
    whiten: bool = False

    taps: ClassVar[Taps] = Taps.GRADS
    modes: ClassVar[tuple[str, ...]] = ("half", "sides")
    step_bound: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_count("SOAP", "period", self.period, 1, 100_000)
        check_range("SOAP", "beta", self.beta, 0.0, 1.0, closed=False)
        check_count("SOAP", "start", self.start, 0, 1_000_000)
        check_range("SOAP", "ridge", self.ridge, 0.0, 1.0)
        if self.cap is not None:
            check_count("SOAP", "cap", self.cap, 2, 65_536)
        if not isinstance(self.schedule, Spread):
            raise ConfigError(f"SOAP(schedule={self.schedule!r}): schedule must be Staggered() or Synchronous().")
        check_choice("SOAP", "polish", self.polish, (False, True))
        check_choice("SOAP", "whiten", self.whiten, (False, True))

    def refuse(self, base: Base, group: dict) -> str | None:
        """See `contract.method.Method.refuse`."""
        if base.linear:
            return (
                "rotating SGD changes nothing: its update is linear in the gradient. Use AdamW, or SecondOrder(Muon())."
            )
        return None

    def exclude(self, base: Base, block: Block) -> str | None:
        """See `contract.method.Method.exclude`."""
        cap = self.cap_on(block.param.device)
        if min(block.rows, block.cols) > tiles.LONG * cap:
            return f"both sides are longer than {tiles.LONG} tiles of {cap}: raise SOAP(cap=...)"
        return None

    def describe(self, base: Base, group: dict, block: Block) -> str:
        """See `contract.method.Method.describe`."""
        cold = self.action(base, group, block, False)
        sides = [tiles.label(cuts) for cuts in self._cuts(block)]
        return f"{cold.value} until step {self.start}, then rotate; tiles {' and '.join(sides)}"

    def action(self, base: Base, group: dict, block: Block, warm: bool) -> Action:
        """See `contract.method.Method.action`."""
        if warm:
            return Action.ROTATE
        return Action.BEND if base.has_first_moment(group) and not block.edge else Action.BASE

    def init(self, stack: StackSpec, base: Base) -> Stats:
        """See `contract.method.Method.init`."""
        count, sides = len(stack.blocks), []
        for length, cuts in zip(stack.shape, self._cuts(stack.blocks[0]), strict=True):
            place = {"dtype": stack.dtype, "device": stack.home}
            factors = tiles.factors(cuts, length, count, triangles=stack.packed, **place)
            place["dtype"] = stack.of_bases
            bases = [torch.zeros(count, cut.stop - cut.start, cut.stop - cut.start, **place) for cut in cuts]
            for basis in bases:
                basis.diagonal(dim1=-2, dim2=-1).fill_(1)
            sides.append(Side(cuts, factors, bases))
        return Stats((sides[0], sides[1]))

    def units(self, index: int, stack: StackSpec) -> list[Unit]:
        """See `contract.method.Method.units`."""
        return [
            Unit(index, row, side, tile, refresh_cost(width), (width, width), columns=width)
            for row, block in enumerate(stack.blocks)
            for side, cuts in enumerate(self._cuts(block))
            for tile, width in enumerate(cut.stop - cut.start for cut in cuts)
        ]

    def pace(self) -> tuple[int, Spread]:
        """See `contract.method.Method.pace`."""
        return self.period, self.schedule

    def step_cost(self, stack: StackSpec, action: Action) -> float:
        """See `contract.method.Method.step_cost`."""
        m, n = stack.shape
        cap, kept = self.cap_on(stack.device), stack.blocks[0].kept
        tiled = [(side, min(side, cap)) for side, has in zip(stack.shape, kept, strict=True) if has]
        turn = m * n * sum(tile for _, tile in tiled)
        observed = turn + (turn + sum(side * tile**2 for side, tile in tiled) if self.whiten else 0.0)
        calls = CALLS / stack.alike  # One call serves the stack.
        if action is Action.BEND:
            return observed + polar_cost(stack.shape, 5) + calls
        polish = polar_cost(stack.shape, 5) if self.polish and not stack.edge else 0.0
        return observed + 2 * turn + polish + calls if action is Action.ROTATE else observed

    def observe(self, stats: Stats, gradients: Tensor, rows: list[int] | None) -> None:
        """See `contract.method.ObservesGradients.observe`."""
        seen = [gradients, gradients]
        for column, other in enumerate(stats.sides[::-1] if self.whiten else ()):
            kept = [other.factors, other.bases]
            factors, bases = kept if rows is None else ([part[rows] for part in parts] for parts in kept)
            seen[column] = tiles.whitened(factors, bases, other.cuts, gradients, column=not column)
        for column, side in enumerate(stats.sides):
            factors = side.factors if rows is None else [F[rows] for F in side.factors]
            tiles.fold(factors, side.cuts, seen[column], 1 - self.beta, column=bool(column))
            if rows is not None:
                for F, part in zip(side.factors, factors, strict=True):
                    F[rows] = part

    def solve(self, asked: Sequence[Asked]) -> Solved:
        """See `contract.method.Solves.solve`."""
        return self._solve(asked, by_householder)

    def quick(self, stats: Stats) -> bool:
        """See `contract.method.SolvesQuickly.quick`: a null space without a ridge has no Cholesky factorisation."""
        return self.ridge > 0 and super().quick(stats)

    def solve_quickly(self, asked: Sequence[Asked]) -> Solved:
        """See `contract.method.SolvesQuickly.solve_quickly`."""
        return self._solve(asked, by_cholesky)

    def _solve(self, asked: Sequence[Asked], how: Factorisation) -> Solved:
        sides = [(stats.sides[unit.side], unit) for stats, unit in asked]
        factors = torch.stack([side.factors[unit.tile][unit.row] for side, unit in sides])
        factors = tiles.whole(factors, sides[0][0].cuts[sides[0][1].tile])
        bases = torch.stack([side.bases[unit.tile][unit.row] for side, unit in sides]).to(factors.dtype)
        return refresh(factors, bases, strength=self.ridge, how=how)

    def solve_afresh(self, stats: Stats, unit: Unit) -> Result:
        """See `contract.method.Solves.solve_afresh`."""
        side = stats.sides[unit.side]
        F = tiles.whole(side.factors[unit.tile][unit.row : unit.row + 1], side.cuts[unit.tile])[0]
        return decompose(F, side.bases[unit.tile][unit.row].to(F.dtype), self.ridge)

    def swap_in(self, asked: Sequence[Asked], solved: Solved) -> Turned:
        """See `contract.method.Solves.swap_in`."""
        sides = [(stats.sides[unit.side], unit) for stats, unit in asked]
        old, new = (
            Q.view(solved.value.shape)[:, None]
            for Q in solved.replace([[side.bases[unit.tile][unit.row]] for side, unit in sides])
        )
        return Turned([side.cuts[unit.tile] for side, unit in sides], old, new)

    def ready(self, base: Base, step: int, solved: list[int]) -> bool:
        """See `contract.method.Method.ready`: past the start, every basis solved, and there is a basis at all."""
        return step >= self.start and all_solved(solved)

    def tensors(self, stats: Stats) -> Iterator[tuple[str, Tensor]]:
        """See `contract.method.Method.tensors`."""
        yield from self.factors(stats)
        for name, side in zip(SIDES, stats.sides, strict=True):
            for tile, Q in enumerate(side.bases):
                yield f"{name}.basis.{tile}", Q

    def factors(self, stats: Stats) -> Iterator[tuple[str, Tensor]]:
        """See `contract.method.Solves.factors`."""
        for name, side in zip(SIDES, stats.sides, strict=True):
            for tile, F in enumerate(side.factors):
                yield f"{name}.factor.{tile}", F

    def whole(self, stats: Stats, row: int) -> list[Tensor]:
        """See `contract.memory.KeepsTriangles.whole`."""
        return tiles.of_row(stats.sides, row)

    def direction(self, stats: Stats, X: Tensor, rows: list[int] | None) -> Tensor:
        """See `contract.method.Method.direction`: the polar factor, while the bases are cold."""
        return self.polar_factor(stats, X.dtype)(X)

    def turn(self, stats: Stats, X: Tensor, rows: list[int] | None, *, leave: bool, square: bool = False) -> Tensor:
        """Rotate a batch into the basis, `Q_L' X Q_R`, or out of it; `square` uses the squared bases.

        Args:
            stats: The stack's statistics.
            X: The batch, shape (k, M, N).
            rows: Its blocks, None for all.
            leave: Out of the basis.
            square: With the elementwise squares of the bases, for second moments.

        Returns:
            The rotated batch.
        """
        for column, side in enumerate(stats.sides):
            bases = side.bases if rows is None else [Q[rows] for Q in side.bases]
            if square:
                bases = [Q.to(X.dtype).square() for Q in bases]
            X = tiles.turn(bases, side.cuts, X, column=bool(column), leave=leave)
        return X

    def spectrum(self, stats: Stats, row: int) -> tuple[Tensor, Tensor]:
        """See `contract.method.Rotates.spectrum`."""
        estimates = []
        for side in stats.sides:
            factors, bases = [F[row : row + 1] for F in side.factors], [Q[row : row + 1] for Q in side.bases]
            estimates.append(tiles.eigenvalues(factors, bases, side.cuts))
        return estimates[0], estimates[1]

    def _cuts(self, block: Block) -> list[list[slice]]:
        """The tiles of a block's rows and of its columns; none of a side that keeps its diagonal alone."""
        cap = self.cap_on(block.param.device)
        return [
            tiles.tiles(side, cap) if has else []
            for side, has in zip((block.rows, block.cols), block.kept, strict=True)
        ]

    def cap_on(self, device: torch.device) -> int:
        """The largest tile on a device."""
        return self.cap or tiles.default_cap(device)
