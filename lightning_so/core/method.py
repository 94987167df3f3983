"""The contract of a method: what curvature it keeps, what can be solved on its own, and what it does around the step.

Methods are frozen dataclasses of hyper-parameters. They compute on *stacks* (blocks of one shape in one batch), hold no
state of their own and make no collectives.
"""

from collections.abc import Iterator
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lightning_so.actions.moments import Base
from lightning_so.core.block import Block, Stack
from lightning_so.core.schedule import Spread, Unit
from lightning_so.linalg.result import Result


class Action(Enum):
    """How curvature meets the base optimizer on one block at one step."""

    ROTATE = "rotate"
    """The base runs in the curvature eigenbasis."""
    BEND = "bend"
    """The base's length, the curvature's direction."""
    PRECONDITION = "precondition"
    """The gradient is multiplied by the inverse curvature."""
    BASE = "base"
    """The base alone."""


@runtime_checkable
class Method(Protocol):
    """What the engine asks of a method.

    Attributes:
        trust: Bound kappa of the step in the curvature's metric, where the method preconditions; None for none.
    """

    @property
    def trust(self) -> float | None:
        """See above."""
        ...

    def refuse(self, base: Base, group: dict) -> str | None:
        """The reason why this base optimizer cannot be used, with the pairing that works, or None."""
        ...

    def exclude(self, block: Block) -> str | None:
        """The reason why this block stays on the base optimizer, or None."""
        ...

    def describe(self, base: Base, group: dict, block: Block) -> str:
        """What happens to the block over time, for the printed plan."""
        ...

    def action(self, base: Base, group: dict, block: Block, warm: bool) -> Action:
        """What happens to the block at this step."""
        ...

    def init(self, stack: Stack) -> Any:
        """The statistics of a stack, created eagerly; shapes depend on the stack alone."""
        ...

    def units(self, index: int, stack: Stack) -> list[Unit]:
        """What can be solved on its own, with costs."""
        ...

    def timing(self) -> tuple[int, Spread]:
        """The largest interval and how solves are spread."""
        ...

    def work(self, stack: Stack, action: Action) -> float:
        """Modelled multiply-adds of one step of one block of a stack under an action, solves apart."""
        ...

    def observe(self, stats: Any, gradients: Tensor, rows: list[int] | None) -> None:
        """Fold a batch of gradients into the statistics in place; `rows` are its blocks, None for all."""
        ...

    def solve(self, stats: Any, unit: Unit) -> Result:
        """Solve one unit from its last value: slow, the owner alone, pure."""
        ...

    def ready(self, step: int, solved: list[int]) -> bool:
        """Whether a cold block may become warm at this step, given the good solves of each of its units."""
        ...

    def tensors(self, stats: Any) -> Iterator[tuple[str, Tensor]]:
        """The tensors to save, each of shape (B, ...), under names that do not depend on the stack."""
        ...

    def direction(self, stats: Any, X: Tensor, rows: list[int] | None) -> Tensor:
        """P X for a batch: of first moments, the direction of *bend*; of gradients, what *precondition* gives."""
        ...


@runtime_checkable
class Rotator(Method, Protocol):
    """A method that rotates: it has bases that are swapped in, and turns batches into and out of them."""

    def settle(self, stats: Any, unit: Unit) -> Result:
        """Solve one unit from its factor alone, in float64: the slow way that needs no last value."""
        ...

    def factors(self, stats: Any) -> Iterator[tuple[str, Tensor]]:
        """Those of `tensors` from which `settle` finds the others; symmetric matrices or vectors a block."""
        ...

    def accept(self, stats: Any, unit: Unit, result: Result) -> tuple[slice, Tensor, Tensor]:
        """Swap a solved basis in; returns its tile, the basis that was and the basis that is."""
        ...

    def turn(self, stats: Any, X: Tensor, rows: list[int] | None, *, leave: bool, square: bool = False) -> Tensor:
        """Rotate a batch into the basis or out of it; `square` uses the squared bases."""
        ...

    def spectrum(self, stats: Any, row: int) -> tuple[Tensor, Tensor]:
        """Eigenvalue estimates of one block's two factors."""
        ...
