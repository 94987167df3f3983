"""The contract of a method: what curvature it keeps, what can be solved on its own, and what it does around the step.

Methods are frozen dataclasses of hyper-parameters. They compute on *stacks* (blocks of one shape in one batch), hold no
state of their own and make no collectives.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_so.actions.moments import Base
from lightning_so.contract.block import Block, StackSpec, Tap, Use
from lightning_so.contract.spread import Spread
from lightning_so.contract.unit import Unit
from lightning_so.contract.ways import Ways
from lightning_so.linalg.polar import PolarFactor
from lightning_so.linalg.result import Result, Solved

#: A unit and the statistics of its stack.
Asked = tuple[Any, Unit]
#: The statistics of a stack and rows of its blocks, rising.
Chosen = tuple[Any, list[int]]


class Taps(Enum):
    """What a method observes."""

    NONE = "none"
    """Nothing: the base's moment is enough."""
    GRADS = "grads"
    """The reduced gradient."""
    ROWS = "rows"
    """Rows of layer inputs and of output gradients."""


class Action(Enum):
    """How curvature meets the base optimizer on one block at one step."""

    ROTATE = "rotate"
    """The base runs in the curvature eigenbasis."""
    BEND = "bend"
    """The base's length or more, the curvature's direction."""
    PRECONDITION = "precondition"
    """The gradient is multiplied by the inverse curvature."""
    BASE = "base"
    """The base alone."""


@dataclass(frozen=True)
class Turned:
    """Bases that were swapped in.

    Attributes:
        cuts: The tile of each.
        old: What they were, shape (k, Q, T, T).
        new: What they are; where a solve has failed, the same.
    """

    cuts: list[slice]
    old: Tensor
    new: Tensor


@runtime_checkable
class Method(Protocol):
    """What the engine asks of a method.

    Attributes:
        taps: What the method observes.
        step_bound: What part of the loss preconditioned steps may bend, of a `footing.KnowsLoss`; None for no bound.
    """

    taps: ClassVar[Taps]

    @property
    def step_bound(self) -> float | None:
        """See above."""
        ...

    def refuse(self, base: Base, group: dict) -> str | None:
        """The reason why this base optimizer cannot be used, with the pairing that works, or None."""
        ...

    def exclude(self, base: Base, block: Block) -> str | None:
        """The reason why this block stays on the base optimizer, or None."""
        ...

    def describe(self, base: Base, group: dict, block: Block) -> str:
        """What happens to the block over time, for the printed plan."""
        ...

    def action(self, base: Base, group: dict, block: Block, warm: bool) -> Action:
        """What happens to the block at this step."""
        ...

    def init(self, stack: StackSpec, base: Base) -> Any:
        """The statistics of a stack under a base, created eagerly; shapes depend on the stack alone."""
        ...

    def units(self, index: int, stack: StackSpec) -> list[Unit]:
        """What can be solved on its own, with costs."""
        ...

    def pace(self) -> tuple[int, Spread]:
        """The largest interval and how solves are spread."""
        ...

    def step_cost(self, stack: StackSpec, action: Action) -> float:
        """Modelled multiply-adds of one step of one block of a stack under an action, solves apart."""
        ...

    def ready(self, base: Base, step: int, solved: list[int]) -> bool:
        """Whether a cold block may become warm at this step, given the good solves of each of its units."""
        ...

    def tensors(self, stats: Any) -> Iterator[tuple[str, Tensor]]:
        """The tensors to save, each of shape (B, ...), under names that do not depend on the stack."""
        ...

    def direction(self, stats: Any, X: Tensor, rows: list[int] | None) -> Tensor:
        """P X for a batch: of first moments, the direction of *bend*; of gradients, what *precondition* gives."""
        ...


@runtime_checkable
class ObservesGradients(Method, Protocol):
    """A method that observes gradients (`Taps.GRADS`)."""

    def observe(self, stats: Any, gradients: Tensor, rows: list[int] | None) -> None:
        """Fold a batch of gradients into the statistics in place; `rows` are its blocks, None for all."""
        ...


@runtime_checkable
class ObservesRows(Method, Protocol):
    """A method that observes rows (`Taps.ROWS`): windows of sums, which are reduced to the owner and folded there.

    Attributes:
        fisher: Whose output gradients: "empirical", those of the loss; "sampled" or "exact", see `statistics.fisher`;
            or "auto", see `statistics.labels`.
    """

    @property
    def fisher(self) -> str:
        """See above."""
        ...

    def needs_loss_unit(self, base: Base) -> bool:
        """Whether it depends on the unit of one sample's loss, so that a mean must be told from a sum."""
        ...

    def needed_by_all(self, base: Base) -> bool:
        """Whether a rank needs what was solved of a block to observe it: then all have it, sharded or not."""
        ...

    def terms(self, tap: Tap, x: Tensor, g: Tensor) -> Tensor | float:
        """Loss terms of a backward pass, from the layer whose output gradient comes first in it."""
        ...

    def clear(self, stats: Any, rows: list[int]) -> None:
        """Forget the windows of blocks."""
        ...

    def collect(self, stats: Any, row: int, block: Block, use: Use) -> None:
        """Add one use of a layer to a block's window."""
        ...

    def windows(self, stats: Any, row: int) -> list[Tensor]:
        """A block's window, made if nothing was collected: what is summed over ranks."""
        ...

    def window_shapes(self, stats: Any, row: int) -> list[torch.Size]:
        """Shapes of those tensors, of the stack's dtype, whether they are there or not."""
        ...

    def fold(self, chosen: Sequence[Chosen], step: int, scale: float) -> None:
        """Fold the windows of blocks into their moving averages; `scale` is K^2 over micro-batches. The owner alone.

        All stacks have one dtype and device, so that what is small is computed for all of their blocks at once.
        """
        ...

    def shared_windows(self, stats: Any, row: int) -> list[Tensor]:
        """Of a block's window, what every rank needs the sum of."""
        ...

    def fold_shared(self, stats: Any, rows: list[int], step: int, scale: float) -> None:
        """Fold that, on every rank."""
        ...


@runtime_checkable
class ActsOnRows(ObservesRows, Protocol):
    """A method that can precondition a gradient through the rows that made it."""

    @property
    def rowwise(self) -> bool:
        """Whether it can in this configuration."""
        ...

    def of_rows(self, stats: Any, row: int, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Rows b and h with `P (g' a) = h' b` of one block, from input rows a (N, I) and output gradients g (N, O)."""
        ...


@runtime_checkable
class Solves(Method, Protocol):
    """A method with units: what was solved is swapped in, and can be found again from the factors."""

    def solve(self, asked: Sequence[Asked]) -> Solved:
        """Solve units of one kind in one go from their last values: slow, the owner alone, pure.

        The host must not wait for it: what fails is marked. How many are solved together changes a result by rounding
        alone.
        """
        ...

    def solve_afresh(self, stats: Any, unit: Unit) -> Result:
        """Solve one unit from its factor alone, by every means: after `solve` has failed, or without a last value."""
        ...

    def swap_in(self, asked: Sequence[Asked], solved: Solved) -> Turned | None:
        """Swap in what is good of a solve, the others of which permute nothing; of bases, what was and what is."""
        ...

    def factors(self, stats: Any) -> Iterator[tuple[str, Tensor]]:
        """Those of `tensors` from which `solve_afresh` finds the others."""
        ...


@runtime_checkable
class Rotates(Solves, Protocol):
    """A method that rotates: it has bases that are swapped in, and turns batches into and out of them."""

    def turn(self, stats: Any, X: Tensor, rows: list[int] | None, *, leave: bool, square: bool = False) -> Tensor:
        """Rotate a batch into the basis or out of it; `square` uses the squared bases."""
        ...

    def spectrum(self, stats: Any, row: int) -> tuple[Tensor, Tensor]:
        """Eigenvalue estimates of one block's row and column factors, shapes (Q, M) and (Q, N)."""
        ...


@runtime_checkable
class SolvesQuickly(Solves, Protocol):
    """A method with a faster way to solve what was solved before. A unit that it fails on is for `solve`, next time."""

    def quick(self, stats: Any) -> bool:
        """Whether it is to be used for a stack; the same on every rank."""
        ...

    def solve_quickly(self, asked: Sequence[Asked]) -> Solved:
        """As `solve`, from last values that were good."""
        ...


@runtime_checkable
class TakesWays(Method, Protocol):
    """A method that computes something in one of several ways; see `contract.ways.ByDevice`."""

    def choose(self, stats: Any, ways: Ways) -> None:
        """Compute in these ways from now on."""
        ...


@runtime_checkable
class BendsByPolarFactor(Method, Protocol):
    """A method that bends by polar factors: those of several stacks may be found in one call, and not by `direction`.

    Both must give the same: who inherits this and writes another `direction` leaves the base's factor to `Ways`.
    """

    def polar_factor(self, stats: Any, dtype: torch.dtype) -> PolarFactor:
        """What gives the direction of first moments of a dtype."""
        ...


@runtime_checkable
class TakesDamping(Method, Protocol):
    """A method whose damping another may set while it trains."""

    def dampen(self, stats: Any, damping: float) -> None:
        """Have solves to come use a damping, in the units of the curvature of one sample's loss."""
        ...


@runtime_checkable
class TakesThinning(ObservesRows, Protocol):
    """A method that can build its factors from fewer rows than it would."""

    def thin(self, stats: Any, every: int) -> None:
        """Have it take one of `every` samples that it would take."""
        ...
