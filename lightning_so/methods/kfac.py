"""K-FAC: the Fisher matrix of a layer as a Kronecker product of its inputs' and its output gradients' second moments.

Legend: B blocks of a stack, Q groups, I input side, O output side, T side of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_so.actions.moments import Base
from lightning_so.core.block import Block, Stack
from lightning_so.core.errors import check_choice, check_range
from lightning_so.core.method import Action, Taps, all_solved, known, on_curvature, refuse_momentless
from lightning_so.core.schedule import Unit
from lightning_so.core.spread import Spread, Staggered
from lightning_so.layers.factor_rows import factor_rows, loss_terms, thin
from lightning_so.linalg import kron, tiles
from lightning_so.linalg.damping import Relative, split, strength
from lightning_so.linalg.kron import Side
from lightning_so.linalg.result import Result

#: Decay of the factors' moving average a step.
BETA = 0.95
#: Damping where none is given: of bent updates, whose length is the base's, and of preconditioned gradients, whose
#: length it sets. There a block's own scale will not do: layers whose gradients vanish at first would run away.
BENT, PRECONDITIONED = Relative(0.1), 0.002


@dataclass
class Stats:
    """What K-FAC keeps of a stack; inert.

    Attributes:
        sides: The input side and the output side: factors summed over ranks at their owner, inverses replicated.
        folded: Step of each block's last fold, shape (B,), on the CPU.
        weight: Sum of the moving average's weights, shape (B,): factors are divided by it.
        counts: Terms of the windows: input positions and loss terms, shape (B, 2). Not saved.
        damping: lambda of each block at its last solve, shape (B,).
        rule: How lambda is found.
        transposed: Whether the input side is the rows of the matrix.
    """

    sides: tuple[Side, Side]
    folded: Tensor
    weight: Tensor
    counts: Tensor
    damping: Tensor
    rule: Relative | float
    transposed: bool


@known
@dataclass(frozen=True)
class KFAC:
    """Multiply gradients (SGD), or turn updates (Adam), by the inverse of F = G x A, one layer at a time.

        A = E[a a'],  G = E[g g'],  a the layer's input and a one for the bias, g the gradient of one sample's loss
        P X = (G + sqrt(l) / pi I)^-1 X (A + pi sqrt(l) I)^-1,  pi^2 = mean(A) / mean(G),  mean(F) = tr F / dim F

    SGD is preconditioned: `g <- nu P g` with the clip nu. Adam is bent: its own length along P m, so that its learning
    rate stays. Statistics are those of one sample's loss, whatever the batch, accumulation, ranks or scaling; whether
    the loss is a mean or a sum over samples is read from its graph.

    Source: Martens and Grosse 2015, arXiv 1503.05671, sections 3 and 6; Eschenhagen et al. 2023, arXiv 2311.00636, for
    shared weights; Botev, Ritter and Barber 2017, arXiv 1706.03662, for the exact output factor.

    Attributes:
        damping: l, in the units of the curvature of one sample's loss; or `Relative(d)`: d mean(A) mean(G). None takes
            `Relative(0.1)` where updates are bent and 0.002 where gradients are preconditioned.
        fisher: Whose g: "empirical", of the labels at hand, at no cost; "sampled", of labels drawn from the model's own
            distribution, one more backward pass where layers are watched; "exact", the Gauss-Newton matrix, a pass for
            each prediction of a sample. Both know cross-entropy, squared and logistic losses.
        exact: Damp the product, `(G x A + l I)^-1`, in the eigenbases, instead of each side.
        sharing: "expand": every position is a sample; "reduce": positions of a sample are summed first, right where the
            model pools them.
        clip: Bound of `lr^2 <P g, g>` summed over blocks where gradients are preconditioned; None for none.
        period: Largest interval between two solves of one block, in steps.
        rows: Most rows of a micro-batch that build a factor; a sample of them is drawn beyond it.
        cap: Largest tile of a side; None takes 1024.

    Example:
        >>> KFAC(damping=0.1).period
        20
    """

    damping: float | Relative | None = None
    fisher: str = "empirical"
    exact: bool = False
    sharing: str = "expand"
    clip: float | None = 3e-5
    period: int = 20
    rows: int = 4096
    cap: int | None = None

    taps: ClassVar[Taps] = Taps.ROWS

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.damping is not None:
            times = self.damping.times if isinstance(self.damping, Relative) else self.damping
            check_range("KFAC", "damping", times, 1e-12, 1e12)
        check_range("KFAC", "period", self.period, 1, 100_000)
        check_range("KFAC", "rows", self.rows, 1, 1_000_000_000)
        check_choice("KFAC", "fisher", self.fisher, ("empirical", "sampled", "exact"))
        check_choice("KFAC", "sharing", self.sharing, ("expand", "reduce"))
        if self.clip is not None:
            check_range("KFAC", "clip", self.clip, 1e-12, 1e12)
        if self.cap is not None:
            check_range("KFAC", "cap", self.cap, 2, 65_536)

    @property
    def trust(self) -> float | None:
        """See `core.method.Method`."""
        return self.clip

    # ---------------------------------------------------------------- which blocks, which action

    def refuse(self, base: Base, group: dict) -> str | None:
        """See `core.method.Method.refuse`."""
        return refuse_momentless("K-FAC", base, group)

    def exclude(self, block: Block) -> str | None:
        """See `core.method.Method.exclude`."""
        return None

    def describe(self, base: Base, group: dict, block: Block) -> str:
        """See `core.method.Method.describe`."""
        sides = [tiles.label(side.cuts) for side in self._sides(block)]
        bias = " with its bias" if block.bias is not None else ""
        groups = f"{block.tap.groups} groups, " if block.tap is not None and block.tap.groups > 1 else ""
        return f"{self.action(base, group, block, True).value}{bias}; {groups}inputs {sides[0]}, outputs {sides[1]}"

    def action(self, base: Base, group: dict, block: Block, warm: bool) -> Action:
        """See `core.method.Method.action`."""
        return on_curvature(base, warm)

    def ready(self, step: int, solved: list[int]) -> bool:
        """See `core.method.Method.ready`: from the first solve on."""
        return all_solved(solved)

    # ---------------------------------------------------------------- statistics

    def absolute(self, base: Base) -> bool:
        """See `core.method.Tapped.absolute`."""
        return not isinstance(self._rule(base), Relative)

    def _rule(self, base: Base) -> Relative | float:
        """How lambda is found under a base."""
        return self.damping or (PRECONDITIONED if base.linear else BENT)

    def _sides(self, block: Block) -> tuple[kron.Shape, kron.Shape]:
        """Input side and output side of a block."""
        tap, cap = block.tap, self.cap or 1024
        assert tap is not None
        rows = block.rows // tap.groups  # Groups lie one below the other, whichever side that is.
        inputs, outputs = (block.cols, rows) if tap.layer.input_side else (rows, block.cols)
        return (
            kron.shape(inputs, tap.groups, cap, diagonal=tap.layer.indices),
            kron.shape(outputs, tap.groups, cap, diagonal=False),
        )

    def init(self, stack: Stack, base: Base) -> Stats:
        """See `core.method.Method.init`."""
        count, first = len(stack.blocks), stack.blocks[0]
        place = {"dtype": stack.dtype, "device": stack.device}
        a, g = (kron.side(shape, count, exact=self.exact, **place) for shape in self._sides(first))
        assert first.tap is not None
        zeros = torch.zeros(count, **place)
        counts, transposed = torch.zeros(count, 2, **place), first.tap.layer.input_side == 0
        return Stats((a, g), torch.zeros(count), zeros, counts, zeros.clone(), self._rule(base), transposed)

    def terms(self, module: nn.Module, x: Tensor, g: Tensor) -> Tensor | float:
        """See `core.method.Tapped.terms`."""
        return loss_terms(module, x, g, reduce=self.sharing == "reduce")

    def clear(self, stats: Stats, row: int) -> None:
        """Forget a block's window."""
        stats.counts[row] = 0
        for side in stats.sides:
            for window in side.windows:
                window[row] = 0

    def collect(
        self, stats: Stats, row: int, block: Block, x: Tensor, g: Tensor, terms: Tensor | float, step: int
    ) -> None:
        """See `core.method.Tapped.collect`."""
        tap, (inputs, outputs) = block.tap, stats.sides
        assert tap is not None
        positions = g.numel() // (block.rows if tap.layer.input_side else block.cols)
        x, g, share = thin(tap.layer, x, g, positions=positions, most=self.rows, step=step)
        bias, reduce = block.bias is not None, self.sharing == "reduce"
        found = factor_rows(tap.layer, tap.module, x, g, bias=bias, reduce=reduce, dtype=inputs.dtype)
        inputs.add(row, found.a)
        outputs.add(row, found.g, 1 / share)
        stats.counts[row, 0] += found.count
        stats.counts[row, 1] += terms

    def windows(self, stats: Stats, row: int) -> list[Tensor]:
        """A block's window: what is summed over ranks."""
        return [stats.counts[row], *(window[row] for side in stats.sides for window in side.windows)]

    def fold(self, stats: Stats, row: int, step: int, scale: float) -> None:
        """`F <- b^k F + (1 - b^k) window`, k the steps since the last fold; `scale` is K^2 over micro-batches."""
        keep = BETA ** (step - int(stats.folded[row]))
        stats.folded[row] = step
        # A layer that did not fire keeps what it has.
        fired = (stats.counts[row] > 0).all().to(stats.weight.dtype)
        kept, added = 1 - fired * (1 - keep), fired * (1 - keep)
        stats.weight[row].mul_(kept).add_(added)
        positions, terms = stats.counts[row].clamp_min(1)
        stats.sides[0].fold(row, kept, added / positions)
        stats.sides[1].fold(row, kept, added * scale / terms)
        stats.counts[row] = 0

    # ---------------------------------------------------------------- solve and apply

    def units(self, index: int, stack: Stack) -> list[Unit]:
        """See `core.method.Method.units`: the pair of a block's sides."""
        shapes = self._sides(stack.blocks[0])
        cost = sum(kron.cost(shape, self.rows, exact=self.exact) for shape in shapes)
        size = sum(kron.solved_size(shape, exact=self.exact) for shape in shapes) + 1
        return [Unit(index, row, 0, 0, cost, (size,), ordered=False) for row in range(len(stack.blocks))]

    def timing(self) -> tuple[int, Spread]:
        """See `core.method.Method.timing`."""
        return self.period, Staggered()

    def work(self, stack: Stack, action: Action) -> float:
        """See `core.method.Method.work`."""
        m, n = stack.shape
        return 0.0 if action is Action.BASE else float(m * n * (m + n))

    def solve(self, stats: Stats, unit: Unit) -> Result:
        """See `core.method.Method.solve`."""
        weight = stats.weight[unit.row]
        means = [side.mean(unit.row) / weight for side in stats.sides]
        damping = strength(stats.rule, means)
        if self.exact:
            parts = [side.eigen(unit.row, weight) for side in stats.sides]
        else:
            halves = split(damping, means)
            parts = [side.inverse(unit.row, weight, half) for side, half in zip(stats.sides, halves, strict=True)]
        value = torch.cat([*(part.value.flatten() for part in parts), damping.reshape(1)])
        ok = all(part.ok for part in parts) and bool((damping > 0) & damping.isfinite())
        return Result(value, ok, attempts=max(part.attempts for part in parts))

    settle = solve

    def accept(self, stats: Stats, unit: Unit, result: Result) -> None:
        """See `core.method.Solver.accept`."""
        at = 0
        for side in stats.sides:
            for solved in side.solved:
                part = solved[unit.row]
                part.copy_(result.value[at : at + part.numel()].view(part.shape))
                at += part.numel()
        stats.damping[unit.row] = result.value[-1]

    def direction(self, stats: Stats, X: Tensor, rows: list[int] | None) -> Tensor:
        """See `core.method.Method.direction`: P X."""
        a, g = stats.sides
        rows_side, columns_side = (a, g) if stats.transposed else (g, a)
        if self.exact:
            damping = stats.damping if rows is None else stats.damping[rows]
            return kron.exact(rows_side, columns_side, X, damping, rows).contiguous()
        return rows_side.left(columns_side.right(X, rows), rows).contiguous()

    @property
    def rowwise(self) -> bool:
        """See `core.method.RowWise`: damping the product needs the matrix."""
        return not self.exact

    def of_rows(self, stats: Stats, row: int, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """See `core.method.RowWise.of_rows`: `a A^-1` and `g G^-1`."""
        inputs, outputs = stats.sides
        return inputs.right(a[None], [row])[0], outputs.right(g[None], [row])[0]

    def tensors(self, stats: Stats) -> Iterator[tuple[str, Tensor]]:
        """See `core.method.Method.tensors`."""
        yield from self.factors(stats)
        for name, side in zip(("inputs", "outputs"), stats.sides, strict=True):
            for number, solved in enumerate(side.solved):
                yield f"{name}.solved.{number}", solved
        yield "damping", stats.damping

    def factors(self, stats: Stats) -> Iterator[tuple[str, Tensor]]:
        """See `core.method.Solver.factors`."""
        yield "folded", stats.folded
        yield "weight", stats.weight
        for name, side in zip(("inputs", "outputs"), stats.sides, strict=True):
            for number, factor in enumerate(side.factors):
                yield f"{name}.factor.{number}", factor
