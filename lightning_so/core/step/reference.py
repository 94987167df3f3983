"""One block at one step, done again in float64, alone, from dense copies: an optional check of the running engine."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_so.actions import hide
from lightning_so.actions.polish import polished
from lightning_so.actions.stretch import stretched
from lightning_so.contract.block import StackSpec
from lightning_so.contract.method import Action
from lightning_so.core.host import Host
from lightning_so.core.report import Report
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.errors import TrustError

#: Largest deviation from the reference, relative to the update: bfloat16 products stay below it, wrong updates do not.
TOLERANCE = 0.05


def reference(cohorts: Iterable[Cohort], host: Host, report: Report, *, every: int) -> "Reference | None":
    """Begin a comparison where one is due; called before anything is rotated or hidden.

    Args:
        cohorts: Those of the step.
        host: The training.
        report: Tells the step, and notes deviations.
        every: Steps between two comparisons; 0 for never.

    Returns:
        The reference of one block; None too on ranks that do not have its curvature.
    """
    if not every or report.step % every:
        return None
    acting = [
        (cohort, position)
        for cohort in cohorts
        if cohort.action is not Action.BASE
        for position in range(len(cohort.blocks))
    ]
    if not acting:
        return None
    # A large stride visits the blocks in no particular order; equal on all ranks.
    cohort, position = acting[report.step // every * 7919 % len(acting)]
    return Reference(cohort, position, host, report) if cohort.stack.here else None


class Reference:
    """What one block must become."""

    def __init__(self, cohort: Cohort, position: int, host: Host, report: Report) -> None:
        """Copy what the step will change.

        Args:
            cohort: The cohort.
            position: Which of its blocks.
            host: The training.
            report: Notes deviations.
        """
        self._cohort, self._host, self._report = cohort, host, report
        self._block = cohort.blocks[position]
        self._row = position if cohort.rows is None else cohort.rows[position]
        self._p0 = self._double(self._block.params)
        bias = self._block.bias
        #: The column of a bias without a gradient: it stays.
        self._still = slice(-1, None) if bias is not None and bias.grad is None else slice(0, 0)
        self._gradient = self._seen_gradient()

    def _double(self, tensors: Sequence[Tensor]) -> Tensor:
        """Parameter-shaped tensors, or what the block has of them, as one matrix in float64, shape (1, rows, cols)."""
        own = self._host.own(self._block, [t.detach() for t in tensors])
        return torch.cat([t.double().reshape(self._block.rows, -1) for t in own], 1)[None].clone()

    def _seen_gradient(self) -> Tensor:
        return self._double([torch.zeros_like(p) if p.grad is None else p.grad for p in self._block.params])

    def _statistics(self) -> Any:
        """The block's statistics in float64, as those of a stack of its own."""
        stack, alone = self._cohort.stack, StackSpec([self._block], self._p0.dtype, self._p0.device)
        stats = stack.method.init(alone, self._host.base)
        theirs = dict(stack.tensors())
        for name, mine in stack.method.tensors(stats):
            mine.copy_(theirs[name][self._row : self._row + 1])
        return stats

    def entered(self) -> None:
        """Compare the gradient that the base will see, if it is rotated; and note that the parameter is hidden."""
        stack = self._cohort.stack
        if self._cohort.action is Action.PRECONDITION:
            expected = stack.method.direction(self._statistics(), self._gradient, None)
            seen = self._seen_gradient()
            expected[..., self._still] = 0
            # The clip of all blocks together scales it; what is left is its direction.
            expected = expected * (seen.norm() / expected.norm().clamp_min(1e-300))
            self._require("its preconditioned gradient", seen, expected, expected.norm())
            return
        group = self._host.group(self._block.group)
        if bool(self._double(self._block.params[:1]).abs().max() > 0):
            self._fail("it is not hidden from the base")
        if not self._host.base.decoupled(group):
            hide.couple_decay([self._gradient], [self._p0], group)
        if self._cohort.action is Action.ROTATE:
            expected = stack.turning.turn(self._statistics(), self._gradient, None, leave=False)
            self._require("its rotated gradient", self._seen_gradient(), expected, expected.norm())

    def stepped(self) -> None:
        """Compute what the parameter must become, from the base's own update and moments."""
        if self._cohort.action is Action.PRECONDITION:
            return
        host, stack = self._host, self._cohort.stack
        group, stats, update = host.group(self._block.group), self._statistics(), self._double(self._block.params)
        if self._cohort.action is Action.ROTATE:
            if stack.polisher is not None:
                update = polished(update, stack.polisher.polar_factor(stats, update.dtype))
            change = stack.turning.turn(stats, update, None, leave=True)
        else:
            a, b = host.base.lookahead(group)
            moment = self._double([host.optimizer.state[p][host.base.first[0]] for p in self._block.params])
            direction = stack.method.direction(stats, a * moment + b * self._seen_gradient(), None)
            change = -self._length(update) / direction.norm() * direction if bool(direction.norm() > 0) else update
        self._change = change
        self._expected = self._p0 * hide.shrink(group, decoupled=host.base.decoupled(group)) + change
        self._expected[..., self._still] = self._p0[..., self._still]

    def _length(self, update: Tensor) -> Tensor:
        """How long a bent update must be, in place of the base's."""
        slopes, length = self._cohort.stack.slopes, update.norm()
        if slopes is None:
            return length
        return length * stretched(slopes.bounds[self._row].double()[None], length[None])

    def finished(self) -> None:
        """Compare what the parameter has become."""
        self._report.verified += 1
        if self._cohort.action is Action.PRECONDITION:
            return
        rounding = 2 * torch.finfo(self._block.param.dtype).eps * self._expected.norm()
        size = self._change.norm() + rounding / TOLERANCE
        self._require("its new value", self._double(self._block.params), self._expected, size)

    def _require(self, what: str, seen: Tensor, expected: Tensor, size: Tensor) -> None:
        deviation = float((seen - expected).norm() / size.clamp_min(1e-300))
        self._report.deviation = max(self._report.deviation, deviation)
        if not deviation <= TOLERANCE:
            self._fail(f"{what} is {deviation:.2g} away from the float64 reference")

    def _fail(self, what: str) -> None:
        raise TrustError(
            f"step {self._report.step}, {self._block.name} ({self._cohort.action.value}): {what}; allowed is "
            f"{TOLERANCE:g} of the update. Something else writes its weight, gradient or moments between backward and "
            f"the end of the step; look for hooks on the optimizer and on this parameter."
        )
