"""EKFAC: K-FAC's eigenbases, with second moments in them that are fresher than the bases.

Legend: B blocks of a stack, Q groups, T side of a tile, M rows and N columns of a group's matrix.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.actions.moments import Base
from lightning_so.contract.block import Block, StackSpec, Use
from lightning_so.contract.known import known
from lightning_so.contract.layerwise import BETA, SIDES, Factors, Layerwise
from lightning_so.contract.method import Action, Asked, Turned
from lightning_so.contract.pairing import all_solved
from lightning_so.contract.unit import Unit
from lightning_so.contract.ways import ByDevice, Ways
from lightning_so.errors import check_count
from lightning_so.layers.sampling import samples
from lightning_so.layers.squares import squares
from lightning_so.linalg import kron
from lightning_so.linalg.basis import CALLS, by_cholesky, decomposed, refresh, refresh_cost
from lightning_so.linalg.damping import OfRate, Relative, Rule, added
from lightning_so.linalg.diagonal import Diagonal, diagonal
from lightning_so.linalg.kron import Tiles
from lightning_so.linalg.polar import polar_cost
from lightning_so.linalg.result import Result, Solved
from lightning_so.linalg.sides import means, stacked, traces

#: Damping of preconditioned gradients where none is given.
DAMPING = OfRate(0.01)
#: Tie-breaking ridge of every solve, relative to the factor's mean diagonal.
RIDGE = 1e-2


@dataclass
class Stats(Factors):
    """What EKFAC keeps of a stack beside its factors; inert.

    Attributes:
        bases: Of the input side and the output side.
        values: Eigenvalue estimates of both, (B, Q, length).
        solved: Which units have been solved, (B, units), on the CPU.
        moments: Second moments, under a base that has none.
        ways: How it is computed.
    """

    bases: tuple[Tiles, Tiles]
    values: tuple[Tensor, Tensor]
    solved: Tensor
    moments: Diagonal | None
    ways: Ways = field(default_factory=Ways)


@known
@dataclass(frozen=True)
class EKFAC(Layerwise, ByDevice):
    """Run Adam in K-FAC's eigenbases (rotate), or divide SGD's gradients there by fresh second moments (precondition).

        A = E[a a'] = Q_A diag(r) Q_A',   G = E[g g'] = Q_G diag(l) Q_G'
        SGD:   P X = Q_G [(Q_G' X Q_A) / (s + D)] Q_A',   s = E[(Q_G' (sum_t g a') Q_A)^2] over samples
               D = (l + y)(r + z)' - l r',   y = sqrt(d) / pi,   z = pi sqrt(d),   pi^2 = mean(r) / mean(l)
        Adam:  g' = Q_G' g Q_A;   u = base(g');   p <- p0 (1 - lr wd) + Q_G u Q_A'

    s is the diagonal of the Fisher matrix in the bases, never farther from it than K-FAC's l r'. It is averaged four
    times an interval while the bases are refreshed once, starts from l r', and is permuted with the eigenvalues where a
    basis changes. D is K-FAC's damping: where s is l r' the step is K-FAC's. Adam brings second moments of its own:
    they start from l r' at entry. Until step `start` hidden matrices are bent by their first moment's polar factor
    under Adam; SGD is preconditioned from the first solve on.

    Source: George et al. 2018, arXiv 1806.03884, equation 8, with s + d; the split damping (Martens and Grosse 2015),
    the start, the carried moments and the staggered refreshes are this project's.

    Attributes:
        damping: d, as of `KFAC`; None takes `OfRate(0.01)`. Under Adam there is none.
        fisher: Whose g: "auto", "empirical", "sampled" or "exact", as of `KFAC`.
        sharing: Of the factors: "expand": every position is a sample; "reduce": positions of a sample are summed first.
        clip: Bound of preconditioned steps, as of `KFAC`; None for none.
        period: Largest interval between two refreshes of one basis, in steps.
        start: Step at which blocks begin to rotate.
        rows: Most rows of a micro-batch that are observed; see `KFAC`.
        cap: Largest tile of a side; None takes 1024.

    Example:
        >>> EKFAC(period=10).start
        50
    """

    damping: Rule | None = None
    fisher: str = "auto"
    sharing: str = "expand"
    clip: float | None = 1e-4
    period: int = 20
    start: int = 50
    rows: int = 4096
    cap: int | None = None
    modes: ClassVar[tuple[str, ...]] = ("half",)

    def __post_init__(self) -> None:
        """Check the arguments."""
        self.check_statistics(self.damping, self.clip, self.period)
        check_count("EKFAC", "start", self.start, 0, 1_000_000)

    # ---------------------------------------------------------------- which blocks, which action

    def refuse(self, base: Base, group: dict) -> str | None:
        """See `contract.method.Method.refuse`: every base will do."""
        return None

    def exclude(self, base: Base, block: Block) -> str | None:
        """See `contract.method.Method.exclude`."""
        if any(shape.cuts for shape in self.shapes(block)):
            return None
        return "neither side has a basis: EKFAC would be the base itself"

    def describe(self, base: Base, group: dict, block: Block) -> str:
        """See `contract.method.Method.describe`."""
        cold, warm = (self.action(base, group, block, warm).value for warm in (False, True))
        return ("" if base.linear else f"{cold} until step {self.start}, then ") + warm + self.label(block)

    def action(self, base: Base, group: dict, block: Block, warm: bool) -> Action:
        """See `contract.method.Method.action`."""
        if warm:
            return Action.PRECONDITION if base.linear else Action.ROTATE
        matrix = block.tap is not None and block.tap.groups == 1 and not block.edge
        return Action.BEND if matrix and not base.linear and base.has_first_moment(group) else Action.BASE

    def ready(self, base: Base, step: int, solved: list[int]) -> bool:
        """See `contract.method.Method.ready`."""
        return all_solved(solved) and (base.linear or step >= self.start)

    # ---------------------------------------------------------------- statistics

    def needs_loss_unit(self, base: Base) -> bool:
        """See `contract.method.ObservesRows.needs_loss_unit`."""
        return base.linear and isinstance(self.damping, float | int)

    def needed_by_all(self, base: Base) -> bool:
        """See `contract.method.ObservesRows.needed_by_all`: squares are taken in the bases."""
        return base.linear

    def init(self, stack: StackSpec, base: Base) -> Stats:
        """See `contract.method.Method.init`."""
        count, shapes = len(stack.blocks), self.shapes(stack.blocks[0])
        place = {"dtype": stack.dtype, "device": stack.home}
        a, g = (kron.bases(shape, count, stack.of_bases, stack.home) for shape in shapes)
        of_a, of_g = (torch.zeros(count, shape.groups, shape.length, **place) for shape in shapes)
        solved = torch.zeros(count, sum(max(1, len(shape.cuts)) for shape in shapes))
        moments = diagonal(count, stack.blocks[0].grouped, **place) if base.linear else None
        factors = vars(self.statistics(stack, self.damping or (DAMPING if base.linear else Relative()), base))
        return Stats(**factors, bases=(a, g), values=(of_a, of_g), solved=solved, moments=moments)

    def clear(self, stats: Stats, rows: list[int]) -> None:
        """See `contract.method.ObservesRows.clear`."""
        super().clear(stats, rows)
        if stats.moments is not None:
            stats.moments.spend(rows)

    def collect(self, stats: Stats, row: int, block: Block, use: Use) -> None:
        """See `contract.method.ObservesRows.collect`."""
        super().collect(stats, row, block, use)
        tap = block.tap
        if tap is None or stats.moments is None or not stats.solved.numpy()[row].all():
            return
        most = self.most(block, use.g, self.rows, stats.thinning)
        x, g, share = samples(tap.layer, tap.module, use.x, use.g, most=most, step=use.step)
        inputs, outputs = (partial(basis.rows, row) for basis in stats.bases)
        kinds = {"unit": use.unit, "one": block.one, "dtype": stats.moments.mean.dtype}
        found = squares(tap.layer, tap.module, x, g, **kinds, inputs=inputs, outputs=outputs)
        stats.moments.window[row].add_(found, alpha=1 / share)
        stats.moments.terms[row] += use.terms

    def shared_windows(self, stats: Stats, row: int) -> list[Tensor]:
        """See `contract.method.ObservesRows.shared_windows`."""
        return super().shared_windows(stats, row) + ([] if stats.moments is None else stats.moments.windows(row))

    def fold_shared(self, stats: Stats, rows: list[int], step: int, scale: float) -> None:
        """See `contract.method.ObservesRows.fold_shared`."""
        super().fold_shared(stats, rows, step, scale)
        if stats.moments is not None:
            stats.moments.fold(rows, step, BETA, scale)

    # ---------------------------------------------------------------- solve

    def units(self, index: int, stack: StackSpec) -> list[Unit]:
        """See `contract.method.Method.units`: every tile of either side; a diagonal is one that costs nothing."""
        found = []
        for row, block in enumerate(stack.blocks):
            for side, shape in enumerate(self.oriented_shapes(block)):
                for tile, width in enumerate(shape.widths or [0]):
                    numbers = shape.groups * (width * (width + 1) or shape.length)
                    solve = shape.groups * (refresh_cost(width) - CALLS) + CALLS if width else 0.0
                    cost = solve + shape.groups * self.rows * width * width + 1e6
                    unit = Unit(index, row, side, tile, cost, (numbers,), shape.groups * width, (shape, tile))
                    found.append(replace(unit, together=True))
        return found

    def step_cost(self, stack: StackSpec, action: Action) -> float:
        """See `contract.method.Method.step_cost`."""
        m, n = stack.shape
        turn = m * n * sum(min(side, self.cap or 1024) for side in stack.shape)
        if action is Action.BEND:
            return polar_cost(stack.shape, 5)
        return 2.0 * turn if action is not Action.BASE else 0.0

    def solve(self, asked: Sequence[Asked]) -> Solved:
        """See `contract.method.Solves.solve`."""
        return self._solve(asked, refresh)

    def solve_quickly(self, asked: Sequence[Asked]) -> Solved:
        """See `contract.method.SolvesQuickly.solve_quickly`."""
        return self._solve(asked, partial(refresh, how=by_cholesky))

    def solve_afresh(self, stats: Stats, unit: Unit) -> Result:
        """See `contract.method.Solves.solve_afresh`."""
        found = self._solve([(stats, unit)], decomposed)
        return Result(found.value[0], bool(found.good), None if found.order is None else found.order[0])

    def _solve(self, asked: Sequence[Asked], how: Callable[..., Solved]) -> Solved:
        sides = [(stats.oriented(stats.sides)[unit.side], unit.row) for stats, unit in asked]
        F, shape = stacked(sides, asked[0][1].tile), sides[0][0].shape
        weight = torch.stack([stats.weight[unit.row] for stats, unit in asked]).clamp_min(torch.finfo(F.dtype).tiny)
        if not shape.cuts:
            good = (F.amax((1, 2)) > 0) & (F.abs().amax((1, 2)) < torch.inf)
            return Solved((F / weight[:, None, None]).flatten(1), good)
        # A tile that is rounding beside the others (keys' gradients sum to zero) must have axes that are no accident.
        mean = traces([F]) / (shape.length * shape.groups) if len(shape.cuts) == 1 else means(sides)
        floor = torch.finfo(F.dtype).eps * mean[:, None].expand(F.shape[:2]).flatten()
        bases = [stats.oriented(stats.bases)[unit.side].tensors[unit.tile][unit.row] for stats, unit in asked]
        count, F = len(F), F.flatten(0, 1)
        found = how(F, torch.stack(bases).flatten(0, 1).to(F.dtype), strength=RIDGE, floor_B=floor)
        Q, order = found.value, found.order
        values = (Q * torch.bmm(F, Q)).sum(1).clamp_min(0).view(count, -1) / weight[:, None]
        value, good = torch.cat([Q.reshape(count, -1), values], 1), found.good
        good = good.view(count, -1).all(1) if shape.groups > 1 else good
        return Solved(value, good, None if order is None else order.reshape(count, -1))

    def swap_in(self, asked: Sequence[Asked], solved: Solved) -> Turned | None:
        """See `contract.method.Solves.swap_in`."""
        values = [stats.oriented(stats.values)[unit.side][unit.row] for stats, unit in asked]
        for stats, unit in asked:
            number = unit.tile + (max(1, len(stats.oriented(stats.sides)[0].shape.cuts)) if unit.side else 0)
            stats.solved.numpy()[unit.row, number] = 1
        bases, tile = [(stats.oriented(stats.bases)[unit.side], unit.row) for stats, unit in asked], asked[0][1].tile
        if not bases[0][0].shape.cuts:
            solved.replace([[value] for value in values])
            return None
        cut, places = bases[0][0].shape.cuts[tile], [basis.tensors[tile][row] for basis, row in bases]
        found = solved.replace([[Q, value[:, cut]] for Q, value in zip(places, values, strict=True)])
        old, new = (both[:, : places[0].numel()].view(-1, *places[0].shape) for both in found)
        if solved.order is not None:
            for (stats, unit), order in zip(asked, solved.order.unbind(0), strict=True):
                if stats.moments is not None:
                    stats.moments.permute(unit.row, cut, unit.side, order.view(old.shape[1], -1))
        return Turned([cut] * len(asked), old, new)

    # ---------------------------------------------------------------- apply

    def direction(self, stats: Stats, X: Tensor, rows: list[int] | None) -> Tensor:
        """See `contract.method.Method.direction`: P X; on a base with second moments the polar factor, while cold."""
        if stats.moments is None:
            return self.polar_factor(stats, X.dtype)(X)
        chosen = slice(None) if rows is None else rows
        values = [values[chosen] for values in stats.oriented(stats.values)]
        s = stats.moments.estimate(kron.product(*values), chosen) + added(stats.in_force(chosen), values)
        left, right = stats.oriented(stats.bases)
        return kron.divided(left, right, X, s, rows).contiguous()

    def turn(self, stats: Stats, X: Tensor, rows: list[int] | None, *, leave: bool, square: bool = False) -> Tensor:
        """See `contract.method.Rotates.turn`: `Q_L' X Q_R` into the basis, `Q_L X Q_R'` out of it."""
        left, right = stats.oriented(stats.bases)
        X = left.left(X, rows, transpose=not leave, square=square)
        return right.right(X, rows, transpose=leave, square=square)

    def spectrum(self, stats: Stats, row: int) -> tuple[Tensor, Tensor]:
        """See `contract.method.Rotates.spectrum`."""
        return stats.oriented(stats.values)[0][row], stats.oriented(stats.values)[1][row]

    def second_moments(self, stats: Stats, row: int) -> tuple[tuple[Tensor, Tensor], Tensor] | None:
        """See `contract.layerwise.Layerwise.second_moments`."""
        if stats.moments is None or not stats.solved.numpy()[row].all():
            return None
        left, right = stats.oriented(stats.values)
        s = stats.moments.estimate(kron.product(left[[row]], right[[row]]), [row])[0]
        return (stats.bases[0].dense(row), stats.bases[1].dense(row)), s

    def tensors(self, stats: Stats) -> Iterator[tuple[str, Tensor]]:
        """See `contract.method.Method.tensors`."""
        yield from self.factors(stats)
        for name, basis, values in zip(SIDES, stats.bases, stats.values, strict=True):
            for tile, Q in enumerate(basis.tensors):
                yield f"{name}.basis.{tile}", Q
            yield f"{name}.values", values
        yield "solved", stats.solved
        if stats.moments is not None:
            yield from stats.moments.tensors()
