"""What is made of a training and of what was asked for: made anew where parameters are added."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from torch import Tensor

from lightning_so.actions.stretch import Slopes
from lightning_so.contract.method import Method, ObservesRows
from lightning_so.core.balance.balance import Balance
from lightning_so.core.device.choose import Chosen, choose
from lightning_so.core.host import Host
from lightning_so.core.matrices.choose import matrices_of
from lightning_so.core.matrices.matrices import Matrices
from lightning_so.core.options import Options
from lightning_so.core.overhead.controller import Controller
from lightning_so.core.plan import coverage
from lightning_so.core.plan.holding import settle
from lightning_so.core.plan.outlines import needed
from lightning_so.core.plan.owners import appoint, number_calls
from lightning_so.core.plan.recommended import recommended
from lightning_so.core.plan.route import refuse_layers, route
from lightning_so.core.plan.table import Plan
from lightning_so.core.report import Report
from lightning_so.core.schedule.budget import Budget, budget_of
from lightning_so.core.schedule.units import Units
from lightning_so.core.solves.flight import Flight
from lightning_so.core.solves.landing import Landing
from lightning_so.core.solves.line import InLine, line_of
from lightning_so.core.solves.swap import Unread
from lightning_so.core.stacks.roster import Roster
from lightning_so.core.stacks.stack import Stack, methods_of, stack_blocks
from lightning_so.core.statistics.recorder import Recorder
from lightning_so.core.statistics.windows import Windows
from lightning_so.core.trust.memory import costs
from lightning_so.core.trust.traffic import described


@dataclass
class Parts:
    """All that an engine works with. It has no functions: each stage is handed what it needs of it.

    A checkpoint alone is of all of it.

    Attributes:
        host: The training.
        report: What was done.
        params: The optimizer's parameters when it was made, in its order.
        sizes: How many of them each group had.
        calls: How many calls make one step of the optimizer.
        plan: Where every parameter went.
        matrices: Where matrices are whole.
        units: What is solved on its own, and when.
        roster: How each block takes part in a step.
        budget: What the solves of a step may cost.
        chosen: How what can be computed in several ways is.
        windows: Rows that are on their way to the owners of factors.
        recorders: One for each method that observes rows.
        line: Where solves run.
        overhead: What buys intervals for a share of time; None where none was asked for.
        balance: What gives ranks units by their speed; None where that was not asked for, and in one process.
        flights: Solves whose results have not been swapped in, oldest first.
        unread: Verdicts on those that were, which the host does not know yet.
        turned: How far bases have turned by the solves of a step, where someone takes it out; None else.
    """

    host: Host
    report: Report
    params: list[Tensor]
    sizes: list[int]
    calls: int
    plan: Plan
    matrices: Matrices
    units: Units
    roster: Roster
    budget: Budget
    chosen: Chosen
    windows: Windows
    recorders: list[Recorder]
    line: InLine
    overhead: Controller | None = None
    balance: Balance | None = None
    flights: list[Flight] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    turned: list[Tensor] | None = None

    @property
    def stacks(self) -> list[Stack]:
        """Blocks that one batched call can serve."""
        return self.units.stacks

    @property
    def landing(self) -> Landing:
        """Where solves land."""
        return Landing(self.units, self.roster, self.host, self.matrices, self.report, self.turned)

    @property
    def methods(self) -> list[Method]:
        """The methods that work on something, in order of their first stack."""
        return methods_of(self.stacks)


def assemble(
    host: Host,
    options: Options,
    report: Report,
    chosen: Chosen | None = None,
    out: Collection[Tensor] | None = None,
) -> Parts:
    """Route the parameters and create all state that depends on which there are: a collective.

    Args:
        host: The training.
        options: What was asked for.
        report: Notes what is covered.
        chosen: In which ways to go on computing; None to find out.
        out: Parameters that are left out while they are frozen; None for those without `requires_grad`.

    Returns:
        The parts, of which nothing is armed.

    Raises:
        ConfigError: If the optimizer, the method and the model do not fit together.
    """
    mixture = options.mixture or recommended(host.base)
    refuse_layers(mixture, host)
    lean = options.memory is not None
    plan = route(host, mixture, options.route, options.memory, out)
    coverage.require(plan, host, options.min_coverage)
    report.coverage = plan.coverage
    number_calls(plan.blocks, host.access)
    if options.memory is None:
        appoint(plan.assigned, host)
    else:
        plan = replace(plan, memory=str(settle(options.memory, plan.assigned, host)))
    matrices = matrices_of(host, plan.blocks, whole_weights=options.checks.whole_weights, lean=lean)
    stacks = stack_blocks(plan.assigned, host)
    for stack in stacks:
        matrices.make_room(stack)
        stack.shared = stack.shared or needed(stack, host.base)
        stack.stats = stack.method.init(stack, host.base)
        if options.lengths == "measured" and not host.base.linear:
            stack.slopes = Slopes.none(len(stack.blocks), stack.dtype, stack.device)
    units = Units.of(stacks, host.team.ranks)
    chosen = chosen or choose(units, host, options.ways)
    line = line_of((stack.device for stack in stacks if stack.solver is not None), options.lag)
    balance = Balance(units, host, report) if options.balance and host.team.ranks > 1 else None
    layout = described(units, host, matrices, options.lag) + line.told + ("" if balance is None else balance.told)
    recorders = [
        Recorder(m, units, host, report, options.reduction) for m in methods_of(stacks) if isinstance(m, ObservesRows)
    ]
    labels = [recorder.labels for recorder in recorders]
    plan = replace(plan, costs=costs(units, host.team.ranks), layout=layout, labels=labels)
    parts = Parts(
        host,
        report,
        host.params,
        host.sizes,
        host.calls,
        plan,
        matrices,
        units,
        Roster(stacks, host),
        budget_of(units, host),
        chosen,
        Windows(units, host.team),
        recorders,
        line,
        Controller(options.overhead, units, host, report.step) if options.overhead is not None else None,
        balance,
    )
    compute(parts, chosen)
    return parts


def compute(parts: Parts, chosen: Chosen) -> None:
    """Compute in these ways from now on.

    Args:
        parts: Told, their plan and their methods too.
        chosen: The ways.
    """
    parts.chosen, parts.plan = chosen, replace(parts.plan, ways=str(chosen))
    for stack in parts.stacks:
        if stack.versatile is not None:
            stack.versatile.choose(stack.stats, chosen.ways)
