"""How each block takes part in a step."""

from typing import TYPE_CHECKING

from lightning_so.contract.method import Action
from lightning_so.core.stacks.cohort import Batch, refuse_sparse, split

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def refresh(engine: "Engine", index: int) -> None:
    """Rebuild a stack's batches if a block lost or found its gradient.

    Args:
        engine: The engine.
        index: Index of the stack.
    """
    stack = engine.stacks[index]
    live = [row for row, block in enumerate(stack.blocks) if engine.lives(block)]
    if live != engine.live[index]:
        refuse_sparse([stack.blocks[row] for row in live])
        engine.live[index] = live
        rebuild(engine, index)


def rebuild(engine: "Engine", index: int) -> None:
    """Rebuild a stack's batches, after a block became warm or cold."""
    stack, live = engine.stacks[index], engine.live[index]
    engine.proof.close(index, engine.batches[index])
    found = [(stack.blocks[row], engine.warm[index][row]) for row in live]
    actions = [stack.method.action(engine.base, engine.group(b.group), b, warm) for b, warm in found]
    engine.batches[index] = split(stack, live, actions)


ACTIONS = (Action.BEND, Action.ROTATE, Action.PRECONDITION)


class Ledger:
    """Counts by stack and row that outlive the batches in which the counting is done."""

    def __init__(self, sizes: list[int]) -> None:
        """Nothing done yet; `sizes` are the numbers of blocks of the stacks."""
        self.counts = [[[0, 0, 0, 0] for _ in range(size)] for size in sizes]

    def close(self, index: int, batches: list[Batch]) -> None:
        """Take over the counts of a stack's batches, which are about to be rebuilt."""
        self.counts[index] = self.of(index, batches)

    def of(self, index: int, batches: list[Batch]) -> list[list[int]]:
        """Steps observed, bent, rotated and preconditioned of every block of a stack."""
        counts = [list(row) for row in self.counts[index]]
        for batch in batches:
            rows = range(len(counts)) if batch.rows is None else batch.rows
            for row in rows:
                counts[row][0] += batch.observed
                if batch.action in ACTIONS:
                    counts[row][1 + ACTIONS.index(batch.action)] += batch.applied
        return counts
