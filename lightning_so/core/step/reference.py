"""Optional checks of the running engine: one block against a float64 reference, and the ranks against each other."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_so.actions import hide
from lightning_so.contract.block import Stack
from lightning_so.contract.method import Action
from lightning_so.core.stacks.cohort import Batch
from lightning_so.core.stacks.stack import named_tensors, turning
from lightning_so.errors import TrustError

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


#: Largest deviation from the reference, relative to the update: bfloat16 products stay below it, wrong updates do not.
TOLERANCE = 0.05


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
