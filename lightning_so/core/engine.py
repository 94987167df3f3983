"""The engine: the one place where the stages of a step meet.

guard -> fold -> solve -> carry -> enter -> act (rotate, hide)   | the base optimizer steps |   finish (un-rotate, bend)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.actions import hide, moments
from lightning_so.comm import Access, Local
from lightning_so.contract.block import Block
from lightning_so.contract.method import Action, Method, Tapped
from lightning_so.core import host
from lightning_so.core.assembly import furnished
from lightning_so.core.checkpoint.portable import state_dict, take_over
from lightning_so.core.matrices.sharded import lay_out
from lightning_so.core.options import Checks
from lightning_so.core.plan import coverage
from lightning_so.core.plan import route as apart_route
from lightning_so.core.plan.mixture import Mixture
from lightning_so.core.plan.route import route
from lightning_so.core.report import Report
from lightning_so.core.schedule import budget
from lightning_so.core.schedule import units as windows_units
from lightning_so.core.schedule.schedule import Schedule
from lightning_so.core.schedule.units import timed
from lightning_so.core.solves import basis, swap
from lightning_so.core.solves.flight import Flight
from lightning_so.core.stacks import roster
from lightning_so.core.stacks.cohort import Batch
from lightning_so.core.stacks.roster import rebuild, refresh
from lightning_so.core.statistics import observe, windows
from lightning_so.core.statistics.recorder import Recorder
from lightning_so.core.step import act, finish
from lightning_so.core.step.guard import Guard
from lightning_so.core.step.reference import Watch
from lightning_so.core.stopwatch import Stopwatch
from lightning_so.core.trust import proof
from lightning_so.core.trust.memory import costs
from lightning_so.core.trust.traffic import described
from lightning_so.errors import check_choice


class Engine:
    """Puts one method, or several by rules, in front of one base optimizer.

    Attributes:
        methods: The methods that work on something, in order of their first stack.
        recorders: One for each of them that observes layers.
        plan: Where every parameter went.
        report: What was done.
        peers: How ranks agree on what happens to all of them.
        comm: How they share the work; one process where ranks work apart.
        warm: By stack and row, whether the block rotates.
        peak: See `budget.dearest`.
        flights: Solves whose results have not been swapped in, oldest first.
        early: Windows of rows that have left for their owners, of layers of the coming step.
        units_of: By stack and row, the numbers of the block's units in the schedule.
        live: By stack, the rows that have a gradient.
        batches: By stack, the blocks that have a gradient, split by action.
        acting: The batches whose parameters are hidden now.
        prepared: Whether the coming step of the base has been prepared.
        unfinished: Steps in a row that were prepared and not finished.
        aside: Whether the base is stepped for its state alone, which is not a step of the training.
        stopwatch: Host seconds of each stage.
        tell: Called with the plan whenever it is made anew.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: Method | Mixture,
        *,
        roles: Mapping[str, Sequence[str]] | None = None,
        min_coverage: float = 0.0,
        checks: Checks | None = None,
        comm: Local | None = None,
        access: Access | None = None,
        reduction: str | None = None,
        lag: int = 0,
    ) -> None:
        """Route the parameters and create all state.

        Args:
            model: The model whose names are used.
            optimizer: The base optimizer.
            method: The method, or rules that choose one for every parameter.
            roles: See `routing.route`.
            min_coverage: Smallest share of elements that must be covered.
            checks: Optional checks of the running engine.
            comm: How ranks talk to each other; one process by default.
            access: Where the parameters' numbers are; whole on every rank by default.
            reduction: See `attach`.
            lag: See `attach`.

        Raises:
            ConfigError: If the optimizer, the method and the model do not fit together.
        """
        self.model, self.optimizer, self.mixture = model, optimizer, Mixture.of(method)
        self.peers, self.access, self.checks = comm or Local(), access or Access(), checks or Checks()
        self.comm = Local() if self.access.local else self.peers
        apart_route.check(self)
        check_choice(type(self).__name__, "reduction", reduction, (None, "mean", "sum"))
        check_choice(type(self).__name__, "lag", lag, (0, 1))
        self.roles, self.min_coverage, self.reduction, self.lag = roles, min_coverage, reduction, lag
        self.base = moments.lookup(optimizer)
        self.guard, self.report, self.stopwatch = Guard(self.peers, self.access), Report(), Stopwatch()
        self.acting: list[Batch] = []
        self.prepared, self.clipped, self.unfinished, self.aside = False, False, 0, False
        self.tell: Callable[[object], None] = lambda _: None
        self._watch: Watch | None = None
        self._call, self._calls = 0, len(self.access.calls() or [()])
        self._build()

    def _build(self) -> None:
        """Route the parameters and create all state that depends on which there are."""
        self._known = self._sizes()
        self.layout = lay_out(self)
        self.plan = route(self.model, self.optimizer, self.access, self.mixture, self.base, self.roles)
        coverage.require(self, self.min_coverage)
        self.report.coverage = self.plan.coverage
        self.stacks = furnished(self)
        self.warm = [[False] * len(stack.blocks) for stack in self.stacks]
        self.methods = list({id(stack.method): stack.method for stack in self.stacks}.values())
        self.spreads = [spread for spread in (method.timing()[1] for method in self.methods) if spread.staggered]
        units = timed(self.stacks)
        owners = [self.stacks[unit.stack].blocks[unit.row].owner for unit in units] if self.layout.split else None
        self.schedule = Schedule(units, self.comm.ranks, owners)
        self.units_of: list[list[list[int]]] = [[[] for _ in stack.blocks] for stack in self.stacks]
        for number, unit in enumerate(units):
            self.units_of[unit.stack][unit.row].append(number)
        self.peak = budget.dearest(self)
        self.plan = replace(self.plan, costs=costs(self), layout=described(self))
        self.live: list[list[int]] = [[] for _ in self.stacks]
        self.batches: list[list[Batch]] = [[] for _ in self.stacks]
        self.flights, self.early = list[Flight](), dict[windows_units.Place, windows.Bucket]()
        self.proof = roster.Ledger([len(stack.blocks) for stack in self.stacks])
        self.recorders = [Recorder(self, method) for method in self.methods if isinstance(method, Tapped)]

    def follow(self) -> None:
        """Take in parameters that were added to the optimizer since; what is known of the others stays.

        The interval starts from its smallest again, and new blocks start cold.
        """
        if self._known == self._sizes():
            return
        self.disarm()
        old = state_dict(self)
        self._build()
        take_over(self, old)
        self.schedule.restart(self.report.step)
        self.tell(self.plan)

    def _sizes(self) -> list[int]:
        return [len(group["params"]) for group in self.groups]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's param groups."""
        return self.access.groups(self.optimizer)

    def group(self, number: int) -> dict[str, Any]:
        """The hyper-parameters of a param group."""
        return self.access.group(self.optimizer, number)

    @property
    def params(self) -> list[Tensor]:
        """The parameters of the optimizer, in its own order."""
        return [p for group in self.groups for p in group["params"]]

    def lives(self, block: Block) -> bool:
        """Whether all of a block has a gradient, on every rank that has a part of it."""
        return not any(param in self.guard.absent for param in block.params)

    def arm(self) -> None:
        """Hook the layers whose rows the coming step observes; nothing for methods that observe none."""
        self.early.clear()
        for recorder in self.recorders:
            recorder.arm(self.report.step + 1)

    def before_backward(self, loss: Tensor) -> None:
        """Show a loss, as it goes backward, to methods that observe layers; nothing for others."""
        for recorder in self.recorders:
            with self.stopwatch.stage("observe"):
                recorder.before_backward(loss)

    def disarm(self) -> None:
        """Take the hooks on layers back."""
        for recorder in self.recorders:
            recorder.disarm()

    # ---------------------------------------------------------------- before the base's step

    @torch.no_grad()
    def step(self, clip: Callable[[], None] | None = None) -> None:
        """Everything that happens between the backward pass and the base optimizer's step.

        Args:
            clip: Clips the raw gradients, where they will be preconditioned: after they were observed.

        Raises:
            TrustError: If earlier steps were not finished, solves are overdue, or a check failed.
        """
        self.restore()
        proof.check(self)
        self.follow()
        self.prepared = True
        with self.stopwatch.stage("guard"):
            admitted = self.guard.admit(self.params)
        for recorder in self.recorders:
            recorder.name_silent()
        self.report.withheld = self.guard.withheld
        if not admitted:
            self.report.skipped += 1
            self.arm()  # What is in the windows is poisoned.
            return
        self.report.step += 1
        try:
            self._prepare(clip)
        except BaseException:
            self.restore()
            raise

    def _prepare(self, clip: Callable[[], None] | None) -> None:
        for index in range(len(self.stacks)):
            refresh(self, index)
        due = budget.due(self)
        with self.stopwatch.stage("observe"):
            observe.observe(self)
        with self.stopwatch.stage("solve"):
            swap.solve(self, due)
            basis.enter(self)
        batches = [batch for batches in self.batches for batch in batches]
        self.clipped = False
        acting = [batch for batch in batches if batch.action is not Action.BASE]
        waiting = [batch for batch in batches if act.waiting(self, batch)]
        raw = bool(waiting) or any(batch.action is Action.PRECONDITION for batch in acting)
        if clip is not None and self.base.linear and host.anywhere(self, raw):
            clip()
            self.clipped = True
        self._watch = self.checks.watch(self)
        with self.stopwatch.stage("act"):
            for batch in batches:
                batch.observed += 1
            act.begin(self, acting)
            act.bound(self, waiting)
        if self._watch is not None:
            self._watch.entered(self)
        self.report.rotated = sum(len(b.blocks) for b in acting if b.action is Action.ROTATE)
        self.report.bent = sum(len(b.blocks) for b in acting if b.action is Action.BEND)
        self.report.preconditioned = sum(len(b.blocks) for b in acting if b.action is Action.PRECONDITION)

    def regroup(self) -> None:
        """Rebuild all batches, after the warm blocks changed from outside."""
        for index in range(len(self.stacks)):
            rebuild(self, index)

    # ---------------------------------------------------------------- after the base's step

    @torch.no_grad()
    def after_step(self) -> None:
        """Turn the base's updates and write the parameters back; call it right after the base has stepped.

        A base whose step is called several times, for some of the parameters each (DeepSpeed), is followed call by
        call: what shall come into the weights of the forward pass has to be there when the call ends.

        Raises:
            TrustError: If the step was not prepared, or a check failed.
        """
        try:
            proof.check_prepared(self)
            if self._watch is not None:
                self._watch.stepped(self)
            with self.stopwatch.stage("finish"):
                finish.finish(self, self._call)
            self._call += 1
            if self._call == self._calls:
                self._end()
        except BaseException:
            self.restore()
            raise

    def _end(self) -> None:
        """After the last call of the base's step."""
        self.unfinished = 0
        for batch in (batch for batches in self.batches for batch in batches):
            batch.applied += batch.action is Action.PRECONDITION
        if self._watch is not None:
            self._watch.finished(self)
        self.restore()
        self.checks.compare(self)
        self.report.sent = self.peers.sent
        self.arm()

    @torch.no_grad()
    def restore(self) -> None:
        """Undo whatever is still hidden or withheld, after a step that was skipped or failed; otherwise nothing."""
        self.guard.give_back()
        self.prepared, self._watch, self._call = False, None, 0
        if self.acting:
            self.report.undone += 1
            self.unfinished += 1
        self.layout.forget()
        while self.acting:
            batch = self.acting.pop()
            hide.restore(self.layout.weights(batch), batch.saved)
