"""Optional checks of the running engine: one block against a float64 reference, and the ranks against each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_so.actions import hide
from lightning_so.core.batch import Batch
from lightning_so.core.block import Stack
from lightning_so.core.errors import TrustError, check_count
from lightning_so.core.method import Action, turning
from lightning_so.core.state import named_tensors

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine

#: Largest deviation from the reference, relative to the update: bfloat16 products stay below it, wrong updates do not.
TOLERANCE = 0.05


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


def fingerprint(tensor: Tensor) -> Tensor:
    """A 64-bit sum over the bits of a tensor, each weighted by its place: equal tensors give equal numbers."""
    bits = tensor.detach().flatten().view(torch.uint8).long()
    places = torch.arange(1, bits.numel() + 1, device=bits.device)
    return (bits * (places * 2_654_435_761 % 4_294_967_291)).sum()


class Watch:
    """One block at one step, done again in float64, alone, from dense copies."""

    def __init__(self, batch: Batch, position: int) -> None:
        """Copy what the step will change."""
        self.batch, self.position = batch, position
        self.block = batch.blocks[position]
        self.p0 = self._double(self.block.params)
        self.gradient = self._gradient()

    def _double(self, tensors: Sequence[Tensor]) -> Tensor:
        """Parameter-shaped tensors as one matrix in float64, shape (1, rows, cols)."""
        return torch.cat([t.detach().double().reshape(self.block.rows, -1) for t in tensors], 1)[None].clone()

    def _gradient(self) -> Tensor:
        return self._double([p.grad for p in self.block.params if p.grad is not None])

    def _reference(self, engine: "Engine") -> Stack:
        """The block as a stack of its own in float64, with its statistics."""
        stack, row = self.batch.stack, self.position if self.batch.rows is None else self.batch.rows[self.position]
        alone = Stack([self.block], self.p0.dtype, self.p0.device)
        alone.stats = stack.method.init(alone, engine.base)
        for (_, mine), (_, theirs) in zip(named_tensors(alone), named_tensors(stack), strict=True):
            mine.copy_(theirs[row : row + 1])
        return alone

    def entered(self, engine: "Engine") -> None:
        """Compare the gradient that the base will see, if it is rotated; and note that the parameter is hidden."""
        if self.batch.action is Action.PRECONDITION:
            expected = self.block.method.direction(self._reference(engine).stats, self.gradient, None)
            seen = self._gradient()
            # The clip of all blocks together scales it; what is left is its direction.
            expected = expected * (seen.norm() / expected.norm().clamp_min(1e-300))
            self._require(engine, "its preconditioned gradient", seen, expected, expected.norm())
            return
        group = engine.group(self.block.group)
        if bool(self.block.param.detach().abs().max() > 0):
            self._fail(engine, "it is not hidden from the base", float("inf"))
        if not engine.base.decoupled(group):
            hide.couple_decay([self.gradient], [self.p0], group)
        if self.batch.action is Action.ROTATE:
            alone = self._reference(engine)
            expected = turning(alone).turn(alone.stats, self.gradient, None, leave=False)
            self._require(engine, "its rotated gradient", self._gradient(), expected, expected.norm())

    def stepped(self, engine: "Engine") -> None:
        """Compute what the parameter must become, from the base's own update and moments."""
        if self.batch.action is Action.PRECONDITION:
            return
        group = engine.group(self.block.group)
        alone, update = self._reference(engine), self._double(self.block.params)
        if self.batch.action is Action.ROTATE:
            change = turning(alone).turn(alone.stats, update, None, leave=True)
        else:
            a, b = engine.base.lookahead(group)
            moment = self._double([engine.optimizer.state[p][engine.base.first[0]] for p in self.block.params])
            direction = self.block.method.direction(alone.stats, a * moment + b * self._gradient(), None)
            change = -update.norm() / direction.norm() * direction if bool(direction.norm() > 0) else update
        self.change = change
        self.expected = self.p0 * hide.shrink(group, decoupled=engine.base.decoupled(group)) + change

    def finished(self, engine: "Engine") -> None:
        """Compare what the parameter has become."""
        engine.report.verified += 1
        if self.batch.action is Action.PRECONDITION:
            return
        rounding = 2 * torch.finfo(self.block.param.dtype).eps * self.expected.norm()
        size = self.change.norm() + rounding / TOLERANCE
        self._require(engine, "its new value", self._double(self.block.params), self.expected, size)

    def _require(self, engine: "Engine", what: str, seen: Tensor, expected: Tensor, size: Tensor) -> None:
        deviation = float((seen - expected).norm() / size.clamp_min(1e-300))
        engine.report.deviation = max(engine.report.deviation, deviation)
        if not deviation <= TOLERANCE:
            self._fail(engine, f"{what} is {deviation:.2g} away from the float64 reference", deviation)

    def _fail(self, engine: "Engine", what: str, deviation: float) -> None:
        raise TrustError(
            f"step {engine.report.step}, {self.block.name} ({self.batch.action.value}): {what}; allowed is "
            f"{TOLERANCE:g} of the update. Something else writes its weight, gradient or moments between backward and "
            f"the end of the step; look for hooks on the optimizer and on this parameter."
        )
