"""The engine: the one place where the stages of a step meet.

guard -> fold -> solve -> carry -> enter -> act (rotate, hide)   | the base optimizer steps |   finish (un-rotate, bend)
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.actions import hide, moments
from lightning_so.actions.bend import bend
from lightning_so.comm import Local
from lightning_so.core import bases
from lightning_so.core.batch import Batch, split
from lightning_so.core.block import Scratch, Stack, scatter, stack_blocks
from lightning_so.core.errors import ConfigError
from lightning_so.core.method import Action, Method, Rotator
from lightning_so.core.report import Report
from lightning_so.core.routing import route
from lightning_so.core.schedule import Schedule, interval
from lightning_so.core.state import named_tensors
from lightning_so.core.stopwatch import Stopwatch, stage


class Engine:
    """Puts one method in front of one base optimizer.

    Attributes:
        plan: Where every parameter went.
        report: What was done.
        warm: By stack and row, whether the block rotates.
        units_of: By stack and row, the numbers of the block's units in the schedule.
        acting: The batches whose parameters are hidden now.
        stopwatch: None; set to a `Stopwatch` to have the time of each stage added up.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: Method,
        *,
        roles: Mapping[str, Sequence[str]] | None = None,
        min_coverage: float = 0.0,
        comm: Local | None = None,
    ) -> None:
        """Route the parameters and create all state.

        Args:
            model: The model whose names are used.
            optimizer: The base optimizer.
            method: The method.
            roles: See `routing.route`.
            min_coverage: Smallest share of elements that must be covered.
            comm: How ranks talk to each other; one process by default.

        Raises:
            ConfigError: If the optimizer, the method and the model do not fit together.
        """
        if not isinstance(method, Method):
            raise ConfigError(f"method={method!r} is not a method; use SOAP() or Muon().")
        self.optimizer, self.method, self.comm = optimizer, method, comm or Local()
        self.base = moments.lookup(optimizer)
        self.plan = route(model, optimizer, method, self.base, roles)
        if self.plan.coverage < min_coverage:
            raise ConfigError(
                f"coverage {self.plan.coverage:.3f} is below min_coverage={min_coverage}: lower it or change the "
                f"route.\n{self.plan}"
            )
        self.stacks = stack_blocks(self.plan.blocks)
        for stack in self.stacks:
            stack.stats = method.init(stack)
        self.warm = [[False] * len(stack.blocks) for stack in self.stacks]
        units = [unit for index, stack in enumerate(self.stacks) for unit in method.units(index, stack)]
        period, self.spread = method.timing()
        self.schedule = Schedule(units, period, ranks=self.comm.ranks, staggered=self.spread.staggered)
        self.units_of: list[list[list[int]]] = [[[] for _ in stack.blocks] for stack in self.stacks]
        for number, unit in enumerate(units):
            self.units_of[unit.stack][unit.row].append(number)
        self._peak = self._dearest(period)
        self.report = Report(coverage=self.plan.coverage)
        self.stopwatch: Stopwatch | None = None
        self.scratch = Scratch()
        self._live: list[list[int]] = [[] for _ in self.stacks]
        self._batches: list[list[Batch]] = [[] for _ in self.stacks]
        self.acting: list[Batch] = []
        self._withheld: list[tuple[Tensor, Tensor]] = []

    @property
    def params(self) -> list[Tensor]:
        """The parameters of the optimizer, in its own order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def rotator(self) -> Rotator:
        """The method, where it is one that rotates."""
        assert isinstance(self.method, Rotator), f"{type(self.method).__name__} has no bases"
        return self.method

    # ---------------------------------------------------------------- before the base's step

    @torch.no_grad()
    def step(self) -> None:
        """Everything that happens between the backward pass and the base optimizer's step."""
        self.restore()
        with stage(self.stopwatch, "guard"):
            if not self._agree(self._finite()):
                self.report.skipped += 1
                # All of them: the base must neither step nor poison its moments.
                self._withhold(self.params)
                return
        self.report.step += 1
        due = self._due()
        try:
            with stage(self.stopwatch, "observe"):
                for index, stack in enumerate(self.stacks):
                    if self._live[index] and stack.stats is not None:
                        self._observe(index, stack)
            with stage(self.stopwatch, "solve"):
                if due:
                    bases.solve(self, due)
                for index, stack in enumerate(self.stacks):
                    if self._live[index] and stack.stats is not None and bases.enter(self, index, stack):
                        self._split(index, stack)
            acting = [batch for batches in self._batches for batch in batches if batch.action is not Action.BASE]
            with stage(self.stopwatch, "act"):
                for batch in acting:
                    self._act(batch)
        except BaseException:
            self.restore()
            raise
        self.report.rotated = sum(len(b.blocks) for b in acting if b.action is Action.ROTATE)
        self.report.bent = sum(len(b.blocks) for b in acting if b.action is Action.BEND)
        self.report.age_max = self.schedule.age(self.report.step)

    def _finite(self) -> bool:
        """One host read: whether every gradient of the optimizer, and its square, is finite."""
        grads = [p.grad for p in self.params if p.grad is not None]
        sparse = next(
            (block.name for block in self.plan.blocks if block.param.grad is not None and block.param.grad.is_sparse),
            None,
        )
        if sparse:
            raise ConfigError(
                f"{sparse} has a sparse gradient, which no matrix method can use: route it to the base, "
                f"route={{'base': [{sparse!r}]}}."
            )
        dense = [g.coalesce().values() if g.is_sparse else g for g in grads]
        dense = [torch.view_as_real(g) if g.is_complex() else g for g in dense if g.numel()]
        if not dense:
            return True
        # The 2-norm also catches gradients whose squares overflow: they would leave the factors infinite for ever.
        norms = torch._foreach_norm([g.float() if g.dtype is torch.float16 else g for g in dense])
        return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())

    def _agree(self, finite: bool) -> bool:
        """Whether the gradients are finite on every rank; a gradient that another rank lacks is withheld."""
        if self.comm.ranks == 1:
            return finite
        params = self.params
        poisoned, *missing = self.comm.anywhere([not finite, *(p.grad is None for p in params)])
        self.report.withheld += self._withhold(p for p, absent in zip(params, missing, strict=True) if absent)
        return not poisoned

    def flag_bytes(self) -> int:
        """Bytes that a rank sends every step to agree on what may be used."""
        return 0 if self.comm.ranks == 1 else 1 + len(self.params)

    def _withhold(self, params: Iterable[Tensor]) -> int:
        """Take gradients away from the base until after its step; how many there were."""
        found = [(p, p.grad) for p in params if p.grad is not None]
        for p, _ in found:
            p.grad = None
        self._withheld += found
        return len(found)

    def _due(self) -> list[int]:
        """Units to solve at this step within the budget; refreshes the batches on the way."""
        busy = 0.0
        for index, stack in enumerate(self.stacks):
            self._regroup(index, stack)
            for batch in self._batches[index]:
                busy += len(batch.blocks) * self.method.work(stack, batch.action)
        due = self.schedule.due(self.report.step, self.spread.budget(self._peak, busy))
        # A block without gradient has nothing new to solve.
        return [n for n in due if self.schedule.units[n].row in self._live[self.schedule.units[n].stack]]

    def _dearest(self, period: int) -> float:
        """Optimizer work of the dearest phase: all blocks cold, or all warm with their share of solves."""
        groups, phases = self.optimizer.param_groups, [0.0, 0.0]
        for stack in self.stacks:
            for block in stack.blocks:
                for warm in (False, True):
                    action = self.method.action(self.base, groups[block.group], block, warm)
                    phases[warm] += self.method.work(stack, action)
        phases[1] += sum(unit.cost for unit in self.schedule.units) / interval(10 * period, period)
        return max(phases)

    def regroup(self) -> None:
        """Rebuild all batches, after the warm blocks changed from outside."""
        for index, stack in enumerate(self.stacks):
            self._split(index, stack)

    def _regroup(self, index: int, stack: Stack) -> None:
        """Rebuild a stack's batches if a block lost or found its gradient."""
        live = [row for row, block in enumerate(stack.blocks) if block.param.grad is not None]
        if live != self._live[index]:
            self._live[index] = live
            self._split(index, stack)

    def _split(self, index: int, stack: Stack) -> None:
        groups = self.optimizer.param_groups
        self._batches[index] = split(
            stack,
            self._live[index],
            [
                self.method.action(self.base, groups[stack.blocks[row].group], stack.blocks[row], self.warm[index][row])
                for row in self._live[index]
            ],
        )

    def _observe(self, index: int, stack: Stack) -> None:
        live = self._live[index]
        grads = [stack.blocks[row].param.grad for row in live]
        gradient = self.scratch.gather(stack, grads, 0)  # type: ignore[arg-type]
        self.method.observe(stack.stats, gradient, None if len(live) == len(stack.blocks) else live)

    def _act(self, batch: Batch) -> None:
        """Add coupled decay, rotate the gradients, hide the parameters."""
        grads, groups = batch.gradients(), self.optimizer.param_groups
        for group, positions in batch.groups.items():
            if not self.base.decoupled(groups[group]) and groups[group]["weight_decay"] != 0:
                hide.couple_decay([grads[i] for i in positions], [batch.params[i] for i in positions], groups[group])
        if batch.action is Action.ROTATE:
            source = self.scratch.gather(batch.stack, grads, 0)
            scatter(self.rotator.turn(batch.stack.stats, source, batch.rows, leave=False), grads)
        hide.save(batch.params, batch.saved)
        # Listed before it is hidden: an interrupt between the two lines must not lose a weight.
        self.acting.append(batch)
        hide.hide(batch.params)

    # ---------------------------------------------------------------- after the base's step

    @torch.no_grad()
    def after_step(self) -> None:
        """Turn the base's updates and write the parameters back; call it right after the base has stepped."""
        try:
            with stage(self.stopwatch, "finish"):
                while self.acting:
                    self._finish(self.acting[-1])
                    self.acting.pop()
        finally:
            self.restore()

    def _finish(self, batch: Batch) -> None:
        stack, groups = batch.stack, self.optimizer.param_groups
        update = self.scratch.gather(stack, batch.params, 0)
        if batch.action is Action.ROTATE:
            update = self.rotator.turn(stack.stats, update, batch.rows, leave=True)
        else:
            update = bend(update, self.method.direction(self._lookahead(batch)))
        p0 = stack.hidden if batch.rows is None else stack.hidden[batch.rows]
        room = self.scratch.like(stack, len(batch.blocks), 1)
        factors = [hide.shrink(groups[b.group], decoupled=self.base.decoupled(groups[b.group])) for b in batch.blocks]
        scatter(hide.combine(p0, update, factors, room), batch.params)

    def _lookahead(self, batch: Batch) -> Tensor:
        """The look-ahead first moment of a batch, in the second work space."""
        key = self.base.first[0]
        moment = self.scratch.gather(batch.stack, [self.optimizer.state[p][key] for p in batch.params], 1)
        gradient = self.scratch.gather(batch.stack, batch.gradients(), 2)
        for group, positions in batch.groups.items():
            a, b = self.base.lookahead(self.optimizer.param_groups[group])
            if len(batch.groups) == 1:
                moment.mul_(a).add_(gradient, alpha=b)
            else:
                moment[positions] = a * moment[positions] + b * gradient[positions]
        return moment

    @torch.no_grad()
    def restore(self) -> None:
        """Undo whatever is still hidden or withheld, after a step that was skipped or failed; otherwise nothing."""
        for p, grad in self._withheld:
            p.grad = grad
        self._withheld.clear()
        if self.acting:
            self.report.undone += 1
        while self.acting:
            batch = self.acting.pop()
            hide.restore(batch.params, batch.saved)

    def state_bytes(self) -> int:
        """Extra memory held: factors, bases, saved parameters and work space."""
        tensors = [stack.hidden for stack in self.stacks]
        for stack in self.stacks:
            tensors += [tensor for _, tensor in named_tensors(self.method, stack)]
        return sum(tensor.nbytes for tensor in tensors) + self.scratch.nbytes()
