"""How each block takes part in a step: whether it has a gradient, whether it is warm, and in which cohort it acts."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from lightning_so.contract.block import Block
from lightning_so.contract.method import Action
from lightning_so.core.host import Host
from lightning_so.core.stacks.cohort import Cohort, refuse_replaced, refuse_sparse, split
from lightning_so.core.stacks.stack import Stack

#: In this order they are counted, behind the steps observed.
ACTIONS = (Action.BEND, Action.ROTATE, Action.PRECONDITION)


@dataclass(frozen=True)
class Exact:
    """The exact rotated moments of a block whose moments were made plain.

    Attributes:
        states: Of each of its parameters, this rank's pieces by key, on the CPU.
        plain: Fingerprints of the plain ones, in the same order: they tell whether the optimizer has them still.
    """

    states: list[dict[str, Tensor]]
    plain: list[int]


class Roster:
    """Keeps cohorts in step with who has a gradient and who is warm.

    Attributes:
        stacks: The stacks.
        absent: Parameters of which a rank lacks its part of the gradient, at this step.
        warm: By stack and row, whether the block has been let into its basis, or onto its curvature.
        live: By stack, the rows whose weight has a gradient.
        cohorts: By stack, the blocks of these rows, split by action.
        alone: Stack and row of blocks whose bias has a gradient and whose weight has none: the base steps on that bias.
        told: Names of blocks of which that was said.
        away: By stack and row, blocks that have left their basis with its solves kept, because the base's moments were
            made plain or are others; with the exact moments where they are kept, else None.
        foreign: Whether the base's state is another than it was after the last step.
    """

    def __init__(self, stacks: list[Stack], host: Host) -> None:
        """All blocks are cold, and none has been seen with a gradient."""
        self.stacks, self._host = stacks, host
        self.absent, self.alone, self.told = set[Tensor](), set[tuple[int, int]](), set[str]()
        self._looked: set[Tensor] | None = None
        self.warm = [[False] * len(stack.blocks) for stack in stacks]
        self.live: list[list[int]] = [[] for _ in stacks]
        self._still: list[list[int]] = [[] for _ in stacks]
        self.cohorts: list[list[Cohort]] = [[] for _ in stacks]
        self.away, self.foreign = dict[tuple[int, int], Exact | None](), False
        # By stack and row: steps observed, bent, rotated and preconditioned, in cohorts that are no more.
        self._done = [[[0, 0, 0, 0] for _ in stack.blocks] for stack in stacks]

    def __iter__(self) -> Iterator[Cohort]:
        """All cohorts, in the order of the stacks."""
        return (cohort for cohorts in self.cohorts for cohort in cohorts)

    def lives(self, block: Block) -> bool:
        """Whether a block's weight has a gradient, on every rank that has a part of it: then the block acts."""
        return not self.absent or block.param not in self.absent

    def refresh(self) -> None:
        """Regroup the stacks of which a block has lost or found its gradient, or that of its bias.

        Raises:
            ConfigError: If a gradient is sparse.
            TrustError: If a block has lost it because the model has another parameter now.
        """
        if self.absent == self._looked:
            return
        self._looked = self.absent
        for index, stack in enumerate(self.stacks):
            live = [row for row, block in enumerate(stack.blocks) if self.lives(block)]
            still = [row for row in live if stack.blocks[row].bias in self.absent]
            if live != self.live[index] or still != self._still[index]:
                refuse_sparse([stack.blocks[row] for row in live])
                refuse_replaced([stack.blocks[row] for row in self.live[index] if row not in live], self._host)
                self.live[index], self._still[index] = live, still
                self.regroup(index)
        self.alone = {
            (index, row)
            for index, stack in enumerate(self.stacks)
            if len(self.live[index]) < len(stack.blocks)
            for row, block in enumerate(stack.blocks)
            if block.bias is not None and not self.lives(block) and block.bias not in self.absent
        }

    def regroup(self, index: int) -> None:
        """Make a stack's cohorts anew, after a block has become warm or cold."""
        stack, live = self.stacks[index], self.live[index]
        self._done[index] = self.done(index)
        actions = [stack.action(self._host, stack.blocks[row], self.warm[index][row]) for row in live]
        self.cohorts[index] = split(stack, live, actions, self.absent)

    def regroup_all(self) -> None:
        """Make all cohorts anew, after warm blocks were loaded."""
        for index in range(len(self.stacks)):
            self.regroup(index)

    def done(self, index: int) -> list[list[int]]:
        """Steps observed, bent, rotated and preconditioned of every block of a stack."""
        counts = [list(row) for row in self._done[index]]
        for cohort in self.cohorts[index]:
            rows = range(len(counts)) if cohort.rows is None else cohort.rows
            for row in rows:
                counts[row][0] += cohort.observed
                if cohort.action in ACTIONS:
                    counts[row][1 + ACTIONS.index(cohort.action)] += cohort.applied
        return counts

    def recall(self, index: int, row: int, *, warm: bool, done: list[int]) -> None:
        """Load what a file says of a block; `regroup_all` is called before the first and after the last."""
        self.warm[index][row], self._done[index][row] = warm, list(done)
        self.away.pop((index, row), None)
