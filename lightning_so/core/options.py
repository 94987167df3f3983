"""How an engine was asked to work."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lightning_so.contract.method import Action
from lightning_so.core.step.reference import Watch
from lightning_so.core.trust.replicas import fingerprint
from lightning_so.errors import TrustError, check_count

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


@dataclass(frozen=True)
class Checks:
    """How often the engine checks itself.

    Attributes:
        verify_every: Steps between two comparisons of one block's update with a float64 reference; 0 for never.
        compare_every: Steps between two comparisons of the ranks' weights; 0 for never.
    """

    verify_every: int = 0
    compare_every: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_count("Checks", "verify_every", self.verify_every, 0, 1_000_000_000)
        check_count("Checks", "compare_every", self.compare_every, 0, 1_000_000_000)

    def watch(self, engine: "Engine") -> "Watch | None":
        """Begin a comparison with the reference where one is due; called before anything is rotated or hidden."""
        if not self.verify_every or engine.report.step % self.verify_every:
            return None
        acting = [
            (batch, position)
            for batches in engine.batches
            for batch in batches
            if batch.action is not Action.BASE
            for position in range(len(batch.blocks))
        ]
        if not acting:
            return None
        # A large stride visits the blocks in no particular order; equal on all ranks.
        return Watch(*acting[engine.report.step // self.verify_every * 7919 % len(acting)])

    def compare(self, engine: "Engine") -> None:
        """Compare the ranks' weights where that is due.

        Args:
            engine: The engine, after a step.

        Raises:
            TrustError: If they differ, on all ranks.
        """
        if not self.compare_every or engine.comm.ranks == 1 or engine.report.step % self.compare_every:
            return
        mine = torch.stack([fingerprint(p) for p in engine.params])
        wires = engine.comm.gather(mine.view(torch.uint8), [mine.nbytes] * engine.comm.ranks)
        rows = [wire.clone().view(torch.int64) for wire in wires]
        different = [rank for rank, row in enumerate(rows) if not torch.equal(row, rows[0])]
        if not different:
            return
        number = int((rows[different[0]] != rows[0]).nonzero()[0])
        raise TrustError(
            f"step {engine.report.step}: the weights of ranks {different} differ from rank 0's, first in "
            f"{engine.plan.rows[number].name}. "
            f"Something changes weights or gradients on one rank only: look for rank-dependent code after the "
            f"backward pass, and for unequal seeds at start."
        )
