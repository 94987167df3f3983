"""What one step observes of one method: made anew whenever its layers are hooked."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from lightning_so.contract.block import Block
from lightning_so.contract.loss_unit import Written
from lightning_so.core.schedule.units import Place
from lightning_so.core.statistics.layer_call import LayerCall


@dataclass
class KeptRows:
    """The rows of the layers in one step.

    Attributes:
        kept: Input rows (N, I) and output gradients (N, O) by block; None where they are not all, or too many.
    """

    kept: dict[Block, tuple[Tensor, Tensor] | None] = field(default_factory=dict)

    def keep(self, block: Block, x: Tensor, g: Tensor) -> None:
        """Keep the rows of a layer's only use; a second one makes them useless.

        Args:
            block: The block.
            x: Input of its layer.
            g: Gradient of the output, as it comes.
        """
        tap = block.tap
        assert tap is not None
        if block in self.kept or tap.groups > 1 or tap.layer.indices or not tap.layer.input_side:
            self.kept[block] = None
            return
        m, n, positions = block.rows, block.cols, g.numel() // block.rows
        if 1.25 * positions * (m * m + n * n + m * n) > m * n * (m + n):
            self.kept[block] = None
            return
        a = tap.layer.inputs(tap.module, x).flatten(0, 2)
        self.kept[block] = (
            F.pad(a, (0, block.cols - a.shape[1]), value=block.one or 0.0),
            tap.layer.outputs(tap.module, g).flatten(0, 2),
        )


@dataclass
class Observation:
    """What is seen between two steps of the optimizer.

    Attributes:
        watched: Blocks whose rows this step observes.
        fired: Of those that were observed, in how many micro-batches, and in which pass last.
        counted: Of those, in which pass loss terms were counted last: not where all calls were without samples.
        calls: Calls of hooked layers since the optimizer stepped.
        passes: Backward passes since then.
        losses: Losses that were shown since then.
        running: Whether one is under way.
        counts: Whether it is one of a loss, whose rows count.
        terms: Its loss terms, once a layer has told them.
        unit: What makes gradients of its loss those of one sample's, from then on.
        loss: The last loss that was shown; None before.
        written: How the loss of the pass is written, where a method asks; else None.
        rows: Rows of this step, kept where gradients are preconditioned through them.
    """

    watched: dict[Place, Block] = field(default_factory=dict)
    fired: dict[Block, tuple[int, int]] = field(default_factory=dict)
    counted: dict[Block, int] = field(default_factory=dict)
    calls: list[LayerCall] = field(default_factory=list)
    passes: int = 0
    losses: int = 0
    running: bool = False
    counts: bool = True
    terms: Tensor | float | None = None
    unit: Tensor | float = 1.0
    loss: Tensor | None = None
    written: Written | None = None
    rows: KeptRows = field(default_factory=KeptRows)

    def fire(self, block: Block) -> None:
        """Note that a block was observed in this pass."""
        count, last = self.fired.get(block, (0, 0))
        self.fired[block] = (count + (last != self.passes), self.passes)


def name_silent(seen: Observation, named: set[str], lives: Callable[[Block], bool]) -> None:
    """Name watched blocks that have a gradient although their layer's hooks have not fired, once each.

    Args:
        seen: What a step has observed.
        named: Names of those that were named before; grows.
        lives: Whether a block has a gradient.
    """
    for block in seen.watched.values():
        if lives(block) and block not in seen.fired and block.name not in named:
            named.add(block.name)
            warnings.warn(
                f"{block.name} has a gradient, but its layer's hooks were not called in training mode: its weight "
                f"is used functionally, or its code was compiled before this training without hooks (then call "
                f"torch.compiler.reset() first). Without its layer's rows it stays on the base; "
                f"route={{'base': ['{block.name}']}} says so.",
                stacklevel=3,
            )
