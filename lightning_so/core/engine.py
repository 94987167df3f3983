"""The engine: the one place where the stages of a step meet.

guard -> due -> fold -> solve -> swap in -> enter -> act (rotate, hide) | the base steps | finish (un-rotate, bend)
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_so.contract.method import Action
from lightning_so.core.assembly import assemble
from lightning_so.core.checkpoint.reassembly import fits, reassembled
from lightning_so.core.host import Host
from lightning_so.core.options import Options, Part
from lightning_so.core.overhead.meter import stopwatch_of
from lightning_so.core.plan.table import Plan
from lightning_so.core.report import Report
from lightning_so.core.schedule import budget
from lightning_so.core.solves import basis, swap
from lightning_so.core.solves.flight import launch, solve, wait
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.core.stacks.stack import Stack
from lightning_so.core.statistics.observe import fold_gradients, fold_rows
from lightning_so.core.statistics.recorder import Recorder
from lightning_so.core.statistics.windows import share_factors
from lightning_so.core.step import act, finish, slopes
from lightning_so.core.step.guard import Guard
from lightning_so.core.step.progress import Progress, put_back
from lightning_so.core.step.reference import reference
from lightning_so.core.trust import proof, replicas
from lightning_so.linalg.plain import plain


class Engine:
    """Puts one method, or several by rules, in front of one base optimizer.

    Attributes:
        host: The training.
        options: What was asked for.
        report: What was done.
        stopwatch: Seconds of each stage.
        guard: Which gradients may be used.
        parts: What the stages work with; made anew, all of it, where parameters are added.
        current: The step that is prepared and not finished; None between steps.
        unfinished: Steps in a row that were prepared and not finished.
        aside: Whether the base is stepped for its state alone, which is not a step of the training.
        part: What part it takes in steps.
        tell: Called with the plan whenever it is made anew.
    """

    def __init__(self, host: Host, options: Options) -> None:
        """Route the parameters and create all state: a collective.

        Args:
            host: The training.
            options: What was asked for.

        Raises:
            ConfigError: If the optimizer, the method and the model do not fit together.
        """
        self.host, self.options = host, options
        self.report, self.stopwatch = Report(), stopwatch_of(host, metered=options.overhead is not None)
        self.parts = assemble(host, options, self.report)
        self.current: Progress | None = None
        self.guard, self.unfinished, self.aside, self.part = Guard(host.world, host.access), 0, False, Part.ACTS
        self.tell: Callable[[object], None] = lambda _: None

    # ---------------------------------------------------------------- what others ask of it

    @property
    def plan(self) -> Plan:
        """Where every parameter went."""
        return self.parts.plan

    @property
    def stacks(self) -> list[Stack]:
        """Blocks that one batched call can serve."""
        return self.parts.stacks

    @property
    def recorders(self) -> list[Recorder]:
        """One for each method that observes layers."""
        return self.parts.recorders

    @property
    def optimizer(self) -> Optimizer:
        """The base optimizer."""
        return self.host.optimizer

    @property
    def prepared(self) -> bool:
        """Whether the coming step of the base has been prepared."""
        return self.current is not None

    @property
    def hidden(self) -> list[Cohort]:
        """The cohorts whose parameters are hidden now."""
        return [] if self.current is None else self.current.hidden

    def follow(self, host: Host | None = None, state: dict | None = None) -> None:
        """Take in parameters that were added, replaced or thawed since, another optimizer, or the blocks of a state.

        What is known of tensors that stay goes on; see `checkpoint.reassembly`.
        """
        host = host or self.host
        if fits(self.parts, host, state):
            return
        self.disarm()
        self.parts = reassembled(self.parts, host, self.options, state)
        self.host, self.guard = host, Guard(host.world, host.access)
        self.tell(self.plan)

    # ---------------------------------------------------------------- forward and backward

    def arm(self) -> None:
        """Hook the layers whose rows the coming step observes; nothing for methods that observe none."""
        self.parts.windows.underway.clear()
        for recorder in self.recorders if self.part is not Part.RESTS else ():
            recorder.arm(self.report.step + 1, self.stopwatch.hooks)

    def disarm(self) -> None:
        """Take the hooks on layers back."""
        for recorder in self.recorders:
            recorder.disarm()

    def loss_is(self, *, divided: int | None, scale: float, shown: bool) -> None:
        """Tell methods that observe layers of the losses to come.

        Args:
            divided: By how many micro-batches each is divided; None for as many as come.
            scale: By what each is multiplied.
            shown: Whether each will be shown to `before_backward`, so that other passes are none of theirs.
        """
        for recorder in self.recorders:
            recorder.facts.told(divided=divided, scale=scale, shown=shown)

    def before_backward(self, loss: Tensor) -> None:
        """Show a loss, as it goes backward, to methods that observe layers; nothing for others."""
        for recorder in self.recorders:
            with self.stopwatch.stage("watch"):
                recorder.before_backward(plain(loss))

    @torch.no_grad()
    def gradients_ready(self, params: Iterable[Tensor]) -> None:
        """Send off what was observed of layers whose backward pass is over, and go on while it travels.

        Args:
            params: Parameters that have their gradients now; the same, in the same order of calls, on every rank.
        """
        done = set(params)
        with self.stopwatch.stage("watch"):
            for recorder in self.recorders:
                if not recorder.ours:
                    self.parts.windows.send([at for at, block in recorder.seen.watched.items() if block.param in done])

    # ---------------------------------------------------------------- before the base's step

    @torch.no_grad()
    def step(self) -> None:
        """Prepare the base optimizer's step: all that is ours before it; no code of the user may come in between.

        Raises:
            TrustError: If earlier steps were not finished, solves are overdue, or a check failed.
        """
        self.restore()
        self.stopwatch.lap()
        proof.check_finished(self.unfinished, self.host, self.plan)
        proof.check_solved(self.parts.units, self.report.step, self.plan)
        self.follow()
        self.current = Progress()
        with self.stopwatch.stage("guard"):
            verdict = self.guard.admit(self.host.params, swap.together(self.parts.unread))
            if self.part is Part.WATCHES:
                self.guard.give_back()  # The base steps, whatever they are.
        parts, roster = self.parts, self.parts.roster
        swap.learn(verdict.read, parts.unread, parts.landing)
        roster.absent = verdict.absent
        for recorder in self.recorders:
            recorder.name_silent(roster.lives)
        self.report.withheld += verdict.withheld
        if not verdict.admitted:
            self.skip()
            return
        self.report.step += 1
        try:
            self._prepare(self.current)
        except BaseException:
            self.restore()
            raise

    def skip(self) -> None:
        """Count a step that is left out for gradients that are not finite: what is in the windows is poisoned too."""
        self.report.skipped += 1
        self.stopwatch.void()
        self.arm()

    def _prepare(self, current: Progress) -> None:
        parts, host, report, step = self.parts, self.host, self.report, self.report.step
        units, roster, matrices, landing = parts.units, parts.roster, parts.matrices, parts.landing
        basis.follow(landing)
        act.follow_rates(units.stacks, host)
        if parts.overhead is not None:
            parts.overhead.consider(step, [r.share for r in parts.recorders], roster, self.stopwatch, self.tell)
        if self.part is Part.WATCHES and basis.all_ready(units, roster, host, step):
            self.part = Part.ACTS
        entering = self.part is Part.ACTS and basis.entering(units, roster, host, step)
        due = budget.due(units, roster, host, parts.budget, step, entering=entering)
        with self.stopwatch.stage("solve"):
            wait(parts.flights)
        with self.stopwatch.stage("watch"):
            fold_rows(parts.recorders, parts.windows, roster, step, self.tell)
        with self.stopwatch.stage("observe"):
            fold_gradients(roster, matrices)
        with self.stopwatch.stage("solve"):
            swap.land(parts.flights, parts.unread, landing)
            for some in units.portions(due, host.team.ranks):
                solver = self.stopwatch.around(solve, units.kinds)
                solver = solver if parts.balance is None else parts.balance.around(solver, step, self.tell)
                flight = launch(units, some, solver, host.team, step + self.options.lag, parts.line)
                report.solved_here += flight.here
                parts.flights.append(flight)
                swap.land(parts.flights, parts.unread, landing)
            if self.part is Part.WATCHES:
                return
            basis.enter(landing)
        cohorts = list(roster)
        current.reference = reference(cohorts, host, report, every=self.options.checks.verify_every)
        with self.stopwatch.stage("act"):
            for cohort in cohorts:
                cohort.observed += 1
            kept = {block: rows for recorder in parts.recorders for block, rows in recorder.seen.rows.kept.items()}
            acting = act.begin(current, cohorts, units.stacks, host, matrices, kept, parts.chosen.ways.rotation)
        if current.reference is not None:
            current.reference.entered()
        act.count(acting, report)

    # ---------------------------------------------------------------- after it

    @torch.no_grad()
    def after_step(self) -> None:
        """Turn the base's updates and write the parameters back; call it right after the base has stepped.

        A base whose step is called several times, for some of the parameters each (DeepSpeed), is followed call by
        call: what shall come into the weights of the forward pass has to be there when the call ends.

        Raises:
            TrustError: If the step was not prepared, or a check failed.
        """
        try:
            current = self.current
            proof.check_prepared(current is not None, self.host, self.parts.methods)
            assert current is not None
            if current.reference is not None:
                current.reference.stepped()
            with self.stopwatch.stage("finish"):
                parts = self.parts
                rest = self.host, parts.matrices, parts.chosen.ways
                finish.finish(current.hidden, current.call, *rest, measured=slopes.due(self.report.step))
            current.call += 1
            if current.call == self.parts.calls:
                self._end(current)
        except BaseException:
            self.restore()
            raise

    def _end(self, current: Progress) -> None:
        """End the step after the base's last call: count it, check the ranks, hook the layers of the next."""
        self.unfinished = 0
        for cohort in self.parts.roster:
            cohort.applied += cohort.action is Action.PRECONDITION
        if current.reference is not None:
            current.reference.finished()
        self.restore()
        replicas.compare(self.host, self.plan, self.report.step, every=self.options.checks.compare_every)
        self.report.sent = self.host.world.sent
        self.arm()

    @torch.no_grad()
    def restore(self) -> None:
        """Undo whatever is still hidden or withheld, after a step that was skipped or failed; otherwise nothing."""
        if self.hidden:
            self.report.undone += 1
            self.unfinished += 1
        put_back(self.hidden, self.parts.matrices)
        self.parts.matrices.give_room(self.stacks)
        self.guard.give_back()
        self.current = None

    def depart(self) -> None:
        """Take the moments of all blocks back to plain coordinates, so that the base can go on alone."""
        self.restore()
        swap.catch_up(self.parts.unread, self.parts.landing)
        basis.depart(self.parts.landing)

    def share_factors(self) -> None:
        """Give every rank the owners' factors: a collective, so that they are there when the ranks have parted."""
        swap.catch_up(self.parts.unread, self.parts.landing)
        share_factors(self.parts.units, self.host.team)
