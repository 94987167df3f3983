"""P g from the rows that made the gradient: `(g G^-1)' (a A^-1)` costs less than `G^-1 (g' a) A^-1` where rows are few.

Whether rows did make it, up to a factor (a clip, a scale), is tried on a random vector at every step.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_so.core.batch import Batch
from lightning_so.core.block import Block
from lightning_so.core.method import RowWise

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine

#: Largest relative deviation of a probed gradient from its rows, in units of the precision.
ROUNDING = 1e3


@dataclass
class Rows:
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
            F.pad(a, (0, block.cols - a.shape[1]), value=1.0),
            tap.layer.outputs(tap.module, g).flatten(0, 2),
        )


def direction(engine: "Engine", batch: Batch, source_BMN: Tensor) -> Tensor | None:
    """P g of a batch from its rows, or None where they are not there or do not give the gradients.

    Args:
        engine: The engine.
        batch: The batch.
        source_BMN: Its gradients g.

    Returns:
        P g, shape (B, M, N). One host read.
    """
    recorder, method = engine.recorder, engine.method
    if recorder is None or not isinstance(method, RowWise):
        return None
    found = [recorder.rows.kept.get(block) for block in batch.blocks]
    rows = [(a.to(source_BMN.dtype), g.to(source_BMN.dtype)) for a, g in (pair for pair in found if pair is not None)]
    if len(rows) < len(found):
        return None
    probe = _probe(source_BMN.shape[2], source_BMN.dtype, source_BMN.device)
    seen = source_BMN @ probe
    made = torch.stack([g.mT @ (a @ probe) for a, g in rows])
    factor = torch.linalg.vecdot(seen, made) / torch.linalg.vecdot(made, made)
    error = torch.linalg.vector_norm(seen - factor[:, None] * made, dim=1)
    bound = ROUNDING * torch.finfo(seen.dtype).eps * torch.linalg.vector_norm(seen, dim=1)
    if not bool((error <= bound).all()):
        return None
    numbers = batch.rows if batch.rows is not None else range(len(batch.blocks))
    return torch.stack(
        [c * method.of_rows(batch.stack.stats, row, a, g) for c, row, (a, g) in zip(factor, numbers, rows, strict=True)]
    )


@cache
def _probe(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A random vector, the same for every gradient of one width."""
    return torch.rand(length, dtype=dtype, generator=torch.Generator().manual_seed(length)).to(device) * 2 - 1
