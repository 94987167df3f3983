"""K-FAC: the Fisher matrix of a layer as a Kronecker product of its inputs' and its output gradients' second moments.

Legend: B blocks of a stack, Q groups, T side of a tile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.actions.moments import Base
from lightning_so.contract.block import Block, StackSpec
from lightning_so.contract.footing import ruling
from lightning_so.contract.known import known
from lightning_so.contract.layerwise import SIDES, Factors, Layerwise
from lightning_so.contract.method import Action, Asked
from lightning_so.contract.pairing import all_solved, on_curvature, refuse_momentless
from lightning_so.contract.unit import Unit
from lightning_so.linalg import kron, packed, psd
from lightning_so.linalg.damping import OfRate, Relative, Rule, split, strength
from lightning_so.linalg.kron import Tiles
from lightning_so.linalg.result import Result, Solved
from lightning_so.linalg.sides import Gathered, joined, positive, traces

#: Damping where none is given: of bent updates, whose length is the base's, and of preconditioned gradients, whose
#: length it sets. There a block's own scale will not do: layers whose gradients vanish at first would run away.
BENT, PRECONDITIONED = Relative(0.1), OfRate(0.01)


@dataclass
class Stats(Factors):
    """What K-FAC keeps of a stack beside its factors; inert.

    Attributes:
        solved: Inverses of the damped sides; or eigenbases where the product is damped.
        values: Eigenvalues of both sides, (B, Q, length), with eigenbases; else of no use.
        damping: lambda of each block at its last solve, shape (B,).
    """

    solved: tuple[Tiles, Tiles]
    values: tuple[Tensor, Tensor]
    damping: Tensor


@known
@dataclass(frozen=True)
class KFAC(Layerwise):
    """Multiply gradients (SGD), or turn updates (Adam), by the inverse of F = G x A, one layer at a time.

        A = E[a a'],  G = E[g g'],  a the layer's input and a one for the bias, g the gradient of one sample's loss
        P X = (G + sqrt(l) / pi I)^-1 X (A + pi sqrt(l) I)^-1,  pi^2 = mean(A) / mean(G),  mean(F) = tr F / dim F

    SGD is preconditioned: `g <- nu P g / r`, r its largest learning rate so far and nu the bound of
    `actions.precondition`. Adam is bent: its own length along P m, so that its learning rate stays. Statistics are
    those of one sample's loss, whatever the batch, accumulation, ranks or scaling; whether the loss is a mean or a sum
    over samples is read from its graph.

    Source: Martens and Grosse 2015, arXiv 1503.05671, sections 3 and 6; Eschenhagen et al. 2023, arXiv 2311.00636, for
    shared weights; Botev, Ritter and Barber 2017, arXiv 1706.03662, for the exact output factor.

    Attributes:
        damping: l, in the units of the curvature of one sample's loss; `Relative(d)`: d mean(A) mean(G); or
            `OfRate(c)`: c over SGD's learning rate, whatever the loss is multiplied by. None takes `Relative(0.1)`
            where updates are bent and `OfRate(0.01)` where gradients are preconditioned.
        fisher: Whose g: "sampled", of labels drawn from the model's own distribution, one more backward pass where
            layers are watched; "exact", the Gauss-Newton matrix, a pass for each prediction of a sample; "empirical",
            of the labels at hand, at no cost, which vanishes where the fit is good. The first two know cross-entropy,
            squared and logistic losses. "auto" is empirical where updates are bent and the loss is a cross-entropy of
            classes, or none of these, and else sampled; the plan says which.
        exact: Damp the product, `(G x A + l I)^-1`, in the eigenbases, instead of each side.
        sharing: "expand": every position is a sample; "reduce": positions of a sample are summed first, right where the
            model pools them.
        clip: kappa, the part of the loss that a preconditioned step may bend, see `actions.precondition`; None for no
            bound.
        period: Largest interval between two solves of one block, in steps.
        rows: Most rows of a micro-batch that build a factor, drawn from all. Under Adam fewer are: as many as the
            widest tile has, at least 256.
        cap: Largest tile of a side; None takes 1024.

    Example:
        >>> KFAC(damping=0.1).period
        20
    """

    damping: Rule | None = None
    fisher: str = "auto"
    exact: bool = False
    sharing: str = "expand"
    clip: float | None = 1e-4
    period: int = 20
    rows: int = 4096
    cap: int | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        self.check_statistics(self.damping, self.clip, self.period)

    @property
    def modes(self) -> tuple[str, ...]:
        """See `contract.method.TakesMemory.modes`: only there it has eigenbases."""
        return ("half",) if self.exact else ()

    # ---------------------------------------------------------------- which blocks, which action

    def refuse(self, base: Base, group: dict) -> str | None:
        """See `contract.method.Method.refuse`."""
        return refuse_momentless("K-FAC", base, group)

    def exclude(self, base: Base, block: Block) -> str | None:
        """See `contract.method.Method.exclude`: a head whose updates are bent lost on recurrent networks."""
        return (
            "head: K-FAC bends matrices inside the network only" if block.role == "head" and not base.linear else None
        )

    def describe(self, base: Base, group: dict, block: Block) -> str:
        """See `contract.method.Method.describe`."""
        return self.action(base, group, block, True).value + self.label(block)

    def action(self, base: Base, group: dict, block: Block, warm: bool) -> Action:
        """See `contract.method.Method.action`."""
        return on_curvature(base, warm)

    def ready(self, base: Base, step: int, solved: list[int]) -> bool:
        """See `contract.method.Method.ready`: from the first solve on."""
        return all_solved(solved)

    # ---------------------------------------------------------------- statistics

    def needs_loss_unit(self, base: Base) -> bool:
        """See `contract.method.ObservesRows.needs_loss_unit`."""
        return isinstance(self._rule(base), float | int)

    def _rule(self, base: Base) -> Rule:
        """How lambda is found under a base."""
        return self.damping or (PRECONDITIONED if base.linear else BENT)

    def init(self, stack: StackSpec, base: Base) -> Stats:
        """See `contract.method.Method.init`."""
        count, shapes = len(stack.blocks), self.shapes(stack.blocks[0])
        place = {"dtype": stack.dtype, "device": stack.home}
        a, g = (self._room(stack, shape) for shape in shapes)
        of_a, of_g = (torch.zeros(count, s.groups, s.length if self.exact else 0, **place) for s in shapes)
        zeros = torch.zeros(count, **place)
        return Stats(
            **vars(self.statistics(stack, self._rule(base), base)), solved=(a, g), values=(of_a, of_g), damping=zeros
        )

    def _room(self, stack: StackSpec, shape: kron.Shape) -> Tiles:
        """Room for what is solved of a side."""
        count = len(stack.blocks)
        if self.exact:
            return kron.bases(shape, count, stack.of_bases, stack.home)
        return kron.inverses(shape, count, stack.dtype, stack.home, triangles=stack.packed)

    # ---------------------------------------------------------------- solve and apply

    def units(self, index: int, stack: StackSpec) -> list[Unit]:
        """See `contract.method.Method.units`: the pair of a block's sides."""
        cost, size = 0.0, 1
        for shape in self.shapes(stack.blocks[0]):
            solve = sum(25.0 * w**3 if self.exact else psd.inverse_cost(w) for w in shape.widths)
            cost += kron.cost(shape, self.rows, shape.groups * solve)
            triangles = stack.packed and not self.exact
            size += kron.solved_size(shape, triangles=triangles) if not self.exact or shape.cuts else 0
            size += shape.groups * shape.length if self.exact else 0
        kind = self.shapes(stack.blocks[0])
        return [Unit(index, row, 0, 0, cost, (size,), kind=kind) for row in range(len(stack.blocks))]

    def step_cost(self, stack: StackSpec, action: Action) -> float:
        """See `contract.method.Method.step_cost`."""
        m, n = stack.shape
        return 0.0 if action is Action.BASE else float(m * n * (m + n))

    def solve(self, asked: Sequence[Asked]) -> Solved:
        """See `contract.method.Solves.solve`."""
        return self._solve(asked, sturdy=False)

    def solve_afresh(self, stats: Stats, unit: Unit) -> Result:
        """See `contract.method.Solves.solve_afresh`: with as much damping as it takes."""
        found = self._solve([(stats, unit)], sturdy=True)
        return Result(found.value[0], bool(found.good))

    def _solve(self, asked: Sequence[Asked], *, sturdy: bool) -> Solved:
        weight = torch.stack([stats.weight[unit.row] for stats, unit in asked])
        pairs = [[(stats.sides[number], unit.row) for stats, unit in asked] for number in range(2)]
        sides = [Gathered.of(pair).over(weight) for pair in pairs]
        means = [side.mean() for side in sides]
        damping = strength(ruling(asked), means)
        if self.exact:
            found = [side.eigen() for side in sides]
            parts, flags = [of.value for of in found], [*(of.good for of in found), positive([damping])]
        else:
            halves = split(damping, means)
            found = [side.inverses(half, sturdy=sturdy) for side, half in zip(sides, halves, strict=True)]
            parts = [tile for of_side in found for tile in of_side]
            flags = [positive([damping, *(traces([tile]) for tile in parts)])]
            kept = [tensor for solved in asked[0][0].solved for tensor in solved.tensors]
            parts = [packed.as_kept(P, F.ndim) for P, F in zip(parts, kept, strict=True)]
        return joined([*parts, damping[:, None]], flags)

    def swap_in(self, asked: Sequence[Asked], solved: Solved) -> None:
        """See `contract.method.Solves.swap_in`."""
        solved.replace([[tensor[unit.row] for _, tensor in self._solutions(stats)] for stats, unit in asked])

    def _solutions(self, stats: Stats) -> Iterator[tuple[str, Tensor]]:
        """What a solve gives, in its order."""
        for number, (name, solved) in enumerate(zip(SIDES, stats.solved, strict=True)):
            for tile, tensor in enumerate(solved.tensors):
                yield f"{name}.solved.{tile}", tensor
            if self.exact:
                yield f"{name}.values", stats.values[number]
        yield "damping", stats.damping

    def direction(self, stats: Stats, X: Tensor, rows: list[int] | None) -> Tensor:
        """See `contract.method.Method.direction`: P X."""
        left, right = stats.oriented(stats.solved)
        if not self.exact:
            return left.left(right.right(X, rows), rows).contiguous()
        chosen = slice(None) if rows is None else rows
        of_rows, of_columns = stats.oriented(stats.values)
        values = kron.product(of_rows[chosen], of_columns[chosen])
        return kron.divided(left, right, X, values + stats.damping[chosen, None, None, None], rows).contiguous()

    @property
    def rowwise(self) -> bool:
        """See `contract.method.ActsOnRows`: damping the product needs the matrix."""
        return not self.exact

    def of_rows(self, stats: Stats, row: int, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """See `contract.method.ActsOnRows.of_rows`: `a A^-1` and `g G^-1`."""
        inputs, outputs = stats.solved
        return inputs.right(a[None], [row])[0], outputs.right(g[None], [row])[0]

    def tensors(self, stats: Stats) -> Iterator[tuple[str, Tensor]]:
        """See `contract.method.Method.tensors`."""
        yield from self.factors(stats)
        yield from self._solutions(stats)
