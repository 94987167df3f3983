"""Layer by layer statistics: what methods share that see the Fisher matrix of a weight as `G x A`.

Legend: B blocks of a stack, Q groups.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from lightning_so.actions.moments import Base
from lightning_so.actions.precondition import Footing
from lightning_so.contract.block import Block, StackSpec, Tap, Use
from lightning_so.contract.footing import footing, refuse_rate
from lightning_so.contract.loss_unit import BETA, LossUnit
from lightning_so.contract.method import Chosen, Taps
from lightning_so.contract.spread import Spread, Staggered
from lightning_so.errors import check_choice, check_count, check_range
from lightning_so.layers.factor_rows import factor_rows, loss_terms
from lightning_so.linalg import kron, sides, tiles
from lightning_so.linalg.damping import OfRate, Relative, Rule
from lightning_so.linalg.rows import each, put, some
from lightning_so.linalg.sides import Side, traces

#: Rows of one use that build a factor of any size by which updates are bent; more build larger ones. They are averaged
#: with those of other steps.
ENOUGH = 256

#: What both sides are called in files.
SIDES = ("inputs", "outputs")

T = TypeVar("T")


def oriented(pair: tuple[T, T], *, transposed: bool) -> tuple[T, T]:
    """What belongs to the rows and what to the columns of a matrix, of (input side, output side)."""
    return pair if transposed else (pair[1], pair[0])


@dataclass
class Factors:
    """Both factors of the blocks of a stack; inert.

    Attributes:
        sides: The input side and the output side, summed over ranks at their owner.
        folded: Step of each block's last fold, shape (B,), on the CPU.
        weight: Sum of the moving average's weights, shape (B,): factors are divided by it.
        counts: Terms of the windows: input positions and loss terms, shape (B, 2). Not saved.
        transposed: Whether the input side is the rows of the matrix.
        rule: How the damping of solves to come is found.
        thinning: Of how many samples one is taken, beyond what the method does.
        rows: How many positions of a use build factors, unless they are thinned.
        loss: How the loss is written, where gradients are preconditioned; else None.
    """

    sides: tuple[Side, Side]
    folded: Tensor
    weight: Tensor
    counts: Tensor
    transposed: bool
    rule: Rule
    thinning: int
    rows: int
    loss: LossUnit | None

    def oriented(self, pair: tuple[T, T]) -> tuple[T, T]:
        """See the function."""
        return oriented(pair, transposed=self.transposed)

    def in_force(self, rows: list[int] | slice) -> Relative | Tensor | float:
        """The rule for blocks; one in the unit of their rate as a damping of each, (k,)."""
        if not isinstance(self.rule, OfRate):
            return self.rule
        assert self.loss is not None
        return self.loss.damping(self.rule.times, rows)


class Layerwise:
    """The half of a method that observes layers: `A = E[a a']`, `G = E[g g']`.

    Attributes:
        fisher: Whose g: "empirical", "sampled", "exact" or "auto", see `core.statistics.labels`.
        sharing: "expand": every position is a sample; "reduce": positions of a sample are summed first.
        clip: Bound of preconditioned steps, see `actions.precondition`; None for none.
        period: Largest interval between two solves of one unit, in steps.
        rows: Most rows of a micro-batch that build a factor.
        cap: Largest tile of a side; None takes 1024.
    """

    fisher: str
    sharing: str
    clip: float | None
    period: int
    rows: int
    cap: int | None

    taps: ClassVar[Taps] = Taps.ROWS

    def check_statistics(self, damping: Rule | None, clip: float | None, period: int) -> None:
        """Check the arguments that all methods of layers have.

        Args:
            damping: Of the curvature.
            clip: Bound of preconditioned steps.
            period: Largest interval.

        Raises:
            ConfigError: If one is out of range.
        """
        name = type(self).__name__
        if damping is not None:
            check_range(
                name, "damping", damping.times if isinstance(damping, Relative | OfRate) else damping, 1e-12, 1e12
            )
        check_count(name, "period", period, 1, 100_000)
        check_count(name, "rows", self.rows, 1, 1_000_000_000)
        check_choice(name, "fisher", self.fisher, ("auto", "empirical", "sampled", "exact"))
        check_choice(name, "sharing", self.sharing, ("expand", "reduce"))
        if clip is not None:
            check_range(name, "clip", clip, 1e-12, 1e12)
        if self.cap is not None:
            check_count(name, "cap", self.cap, 2, 65_536)

    @property
    def step_bound(self) -> float | None:
        """See `contract.method.Method`."""
        return self.clip

    def pace(self) -> tuple[int, Spread]:
        """See `contract.method.Method.pace`."""
        return self.period, Staggered()

    def shapes(self, block: Block) -> tuple[kron.Shape, kron.Shape]:
        """Input side and output side of a block."""
        tap, cap = block.tap, self.cap or 1024
        assert tap is not None
        rows = block.rows // tap.groups  # Groups lie one below the other, whichever side that is.
        inputs, outputs = (block.cols, rows) if tap.layer.input_side else (rows, block.cols)
        return (
            kron.shape(inputs, tap.groups, cap, diagonal=tap.layer.indices or inputs == 1),
            kron.shape(outputs, tap.groups, cap, diagonal=outputs == 1),
        )

    def oriented_shapes(self, block: Block) -> tuple[kron.Shape, kron.Shape]:
        """The side of a block's rows and that of its columns."""
        assert block.tap is not None
        return oriented(self.shapes(block), transposed=block.tap.layer.input_side == 0)

    def label(self, block: Block) -> str:
        """How a plan names both sides of a block."""
        assert block.tap is not None
        bias = " with its bias" if block.bias is not None else ""
        groups = f"{block.tap.groups} groups, " if block.tap.groups > 1 else ""
        inputs, outputs = (tiles.label(shape.cuts) for shape in self.shapes(block))
        return f"{bias}; {groups}inputs {inputs}, outputs {outputs}"

    def statistics(self, stack: StackSpec, rule: Rule, base: Base) -> Factors:
        """The factors of a stack, all zero."""
        refuse_rate(type(self).__name__, rule, base)
        count, first = len(stack.blocks), stack.blocks[0]
        place = {"dtype": stack.dtype, "device": stack.device}
        a, g = (
            sides.statistics(shape, count, **place, home=stack.home, triangles=stack.packed)
            for shape in self.shapes(first)
        )
        assert first.tap is not None
        weight, counts = torch.zeros(count, **place), torch.zeros(count, 2, **place)
        # What preconditions a gradient sets its length too: there nothing is left out below `rows`.
        enough = max([ENOUGH, *a.shape.widths, *g.shape.widths])
        rows = self.rows if base.linear else min(self.rows, enough)
        loss = LossUnit.of(count, stack.dtype, stack.device) if base.linear else None
        folded, transposed = torch.zeros(count), first.tap.layer.input_side == 0
        return Factors((a, g), folded, weight, counts, transposed, rule, 1, rows, loss)

    def dampen(self, stats: Factors, damping: float) -> None:
        """See `contract.method.TakesDamping.dampen`."""
        stats.rule = damping

    def thin(self, stats: Factors, every: int) -> None:
        """See `contract.method.TakesThinning.thin`."""
        stats.thinning = every

    # ---------------------------------------------------------------- see contract.method.ObservesRows

    def needed_by_all(self, base: Base) -> bool:
        """See `contract.method.ObservesRows.needed_by_all`: no."""
        return False

    def terms(self, tap: Tap, x: Tensor, g: Tensor) -> Tensor | float:
        """See `contract.method.ObservesRows.terms`."""
        return loss_terms(tap.layer, x, g, reduce=self.sharing == "reduce")

    def clear(self, stats: Factors, rows: list[int]) -> None:
        """See `contract.method.ObservesRows.clear`."""
        put(stats.counts, rows, 0)
        for side in stats.sides:
            side.forget(rows)
        if stats.loss is not None:
            stats.loss.clear(rows)

    def collect(self, stats: Factors, row: int, block: Block, use: Use) -> None:
        """See `contract.method.ObservesRows.collect`."""
        tap, (inputs, outputs), reduce = block.tap, stats.sides, self.sharing == "reduce"
        assert tap is not None
        rows = self.rows if reduce or tap.layer.joint else stats.rows
        most = self.most(block, use.g, rows, stats.thinning)
        kinds = {"one": block.one, "reduce": reduce, "dtype": inputs.dtype, "most": most, "step": use.step}
        found = factor_rows(tap.layer, tap.module, use.x, use.g, unit=use.unit, **kinds)
        inputs.add(row, found.a, 1 / found.share)
        outputs.add(row, found.g, 1 / found.share)
        stats.counts[row, 0].add_(found.count, alpha=1 / found.share)
        stats.counts[row, 1].add_(use.terms)
        if stats.loss is not None and use.written is not None:
            stats.loss.add(row, use.written)

    def most(self, block: Block, g: Tensor, rows: int, thinning: int) -> int:
        """How many of the positions of a gradient are observed, where `rows` are unless they are thinned."""
        assert block.tap is not None
        if thinning == 1:
            return rows
        positions = g.numel() // (block.rows if block.tap.layer.input_side else block.cols)
        return max(1, min(rows, positions) // thinning)

    def windows(self, stats: Factors, row: int) -> list[Tensor]:
        """See `contract.method.ObservesRows.windows`."""
        return [stats.counts[row], *(window for side in stats.sides for window in side.window(row))]

    def window_shapes(self, stats: Factors, row: int) -> list[torch.Size]:
        """See `contract.method.ObservesRows.window_shapes`."""
        return [stats.counts.shape[1:], *(shape for side in stats.sides for shape in side.window_shapes)]

    def fold(self, chosen: Sequence[Chosen], step: int, scale: float) -> None:
        """`F <- b^k F + (1 - b^k) window`, k the steps since the last fold; `scale` is K^2 over micro-batches.

        A window with rows that are not finite is forgotten: gradients that were mended afterwards do not show them.
        """
        lost = list[float]()
        for stats, rows in chosen:
            lost += [1 - BETA ** (step - int(last)) for last in stats.folded.numpy()[rows]]
            stats.folded.numpy()[rows] = step
        windows = [[side.gathered(rows) for side in stats.sides] for stats, rows in chosen]
        sums = torch.cat([traces(pair[number]) for number in range(2) for pair in windows]).view(2, -1)
        counts, sound = torch.cat([some(stats.counts, rows) for stats, rows in chosen]), (sums < torch.inf).all(0)
        # A layer that did not fire keeps what it has.
        fired = ((counts > 0).all(1) & sound).to(counts.dtype)
        added = fired * each(lost, fired)
        kept, rates = 1 - added, added / counts.clamp_min(1).mT
        rates[1].mul_(scale)
        weight = torch.addcmul(added, torch.cat([some(stats.weight, rows) for stats, rows in chosen]), kept)
        spoilt, sizes = ~sound, [len(rows) for _, rows in chosen]
        parts = (numbers.split(sizes, -1) for numbers in (weight, kept, rates, spoilt))
        for (stats, rows), pair, of_stack, keep, rate, lose in zip(chosen, windows, *parts, strict=True):
            put(stats.weight, rows, of_stack)
            for side, window, of_side in zip(stats.sides, pair, rate.unbind(0), strict=True):
                side.fold(rows, window, keep, of_side, lose)
            Layerwise.clear(self, stats, rows)

    def shared_windows(self, stats: Factors, row: int) -> list[Tensor]:
        """See `contract.method.ObservesRows.shared_windows`: how the loss is written."""
        return [] if stats.loss is None else [stats.loss.window[row]]

    def fold_shared(self, stats: Factors, rows: list[int], step: int, scale: float) -> None:
        """See `contract.method.ObservesRows.fold_shared`."""
        if stats.loss is not None:
            stats.loss.fold(rows, step)

    def follow_rates(self, stats: Factors, rates: Sequence[float | Tensor]) -> None:
        """See `contract.footing.KnowsLoss.follow_rates`."""
        if stats.loss is not None:
            stats.loss.follow(rates)

    def footing(self, stats: Factors, rows: list[int] | None) -> Footing:
        """See `contract.footing.KnowsLoss.footing`."""
        assert stats.loss is not None
        return footing(stats.loss, stats.rule, slice(None) if rows is None else rows)

    def second_moments(self, stats: Factors, row: int) -> tuple[tuple[Tensor, Tensor], Tensor] | None:
        """Dense bases of both sides and the second moments in them of one block, where there are some; copies."""
        return None

    def whole(self, stats: Factors, row: int) -> list[Tensor]:
        """See `contract.memory.KeepsTriangles.whole`."""
        return [F for side in stats.sides if side.shape.cuts for F in side.of(row)]

    def factors(self, stats: Factors) -> Iterator[tuple[str, Tensor]]:
        """See `contract.method.Solves.factors`."""
        yield "folded", stats.folded
        yield "weight", stats.weight
        for name, side in zip(SIDES, stats.sides, strict=True):
            for number, factor in enumerate(side.factors):
                yield f"{name}.factor.{number}", factor
        if stats.loss is not None:
            yield from stats.loss.tensors()
