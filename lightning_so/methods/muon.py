"""Muon: the base optimizer's own step length, along the orthogonalised first moment. No state of its own."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.actions.moments import Base
from lightning_so.contract.block import Block, StackSpec
from lightning_so.contract.known import known
from lightning_so.contract.method import Action, Taps
from lightning_so.contract.spread import Spread, Staggered
from lightning_so.contract.unit import Unit
from lightning_so.contract.ways import ByDevice, Ways
from lightning_so.errors import check_choice, check_count
from lightning_so.linalg.polar import PolarFactor, polar_cost

_PRECISION = {"auto": None, "fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Stats:
    """What Muon keeps of a stack: how its polar factors are computed."""

    ways: Ways = field(default_factory=Ways)


@known
@dataclass(frozen=True)
class Muon(ByDevice):
    """Bend every hidden matrix by the polar factor of its look-ahead first moment.

        p <- p0 (1 - lr wd) - |u| O / |O|,    O = polar(b1 m + (1 - b1) g),    u the base's update

    The base's length per matrix carries the learning rate over, so AdamW's own works; `actions.stretch` says when it is
    more. Embeddings and the output head stay on the base. Prefer it to SOAP when memory or time per step is short: it
    is the cheapest method.

    Source: Jordan et al. 2024 (Muon); Newton-Schulz coefficients from there.

    Attributes:
        steps: Newton-Schulz steps.
        precision: Of products: "auto" takes "fp16" where the device is faster so, and "fp32" elsewhere; "fp16" is
            nearer to that than "bf16".

    Example:
        >>> Muon().steps
        5
    """

    steps: int = 5
    precision: str = "auto"

    taps: ClassVar[Taps] = Taps.NONE
    step_bound: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_count("Muon", "steps", self.steps, 1, 20)
        check_choice("Muon", "precision", self.precision, tuple(_PRECISION))

    def refuse(self, base: Base, group: dict) -> str | None:
        """See `contract.method.Method.refuse`."""
        if base.has_first_moment(group):
            return None
        need = f"set {base.moving} > 0" if base.moving else "use Adam, AdamW, NAdam, RAdam, or SGD with momentum"
        return f"Muon bends the first moment, and this optimizer keeps none: {need}."

    def exclude(self, base: Base, block: Block) -> str | None:
        """See `contract.method.Method.exclude`."""
        return f"{block.role}: Muon bends hidden matrices only" if block.edge else None

    def describe(self, base: Base, group: dict, block: Block) -> str:
        """See `contract.method.Method.describe`."""
        return "bend"

    def action(self, base: Base, group: dict, block: Block, warm: bool) -> Action:
        """See `contract.method.Method.action`."""
        return Action.BEND

    def init(self, stack: StackSpec, base: Base) -> Stats:
        """No statistics."""
        return Stats()

    def units(self, index: int, stack: StackSpec) -> list[Unit]:
        """Nothing to solve."""
        return []

    def pace(self) -> tuple[int, Spread]:
        """Nothing to spread."""
        return 1, Staggered()

    def step_cost(self, stack: StackSpec, action: Action) -> float:
        """See `contract.method.Method.step_cost`."""
        return polar_cost(stack.shape, self.steps, _PRECISION[self.precision] or stack.dtype)

    def tensors(self, stats: Stats) -> Iterator[tuple[str, Tensor]]:
        """Nothing to save."""
        return iter(())

    def ready(self, base: Base, step: int, solved: list[int]) -> bool:
        """Never warm: there is no basis."""
        return False

    def direction(self, stats: Stats, X: Tensor, rows: list[int] | None) -> Tensor:
        """See `contract.method.Method.direction`."""
        return self.polar_factor(stats, X.dtype)(X)

    def polar_factor(self, stats: Stats, dtype: torch.dtype) -> PolarFactor:
        """See `contract.method.BendsByPolarFactor`."""
        auto = self.precision == "auto"
        return PolarFactor(self.steps, stats.ways.products(dtype) if auto else _PRECISION[self.precision])
