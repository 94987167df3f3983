"""All that a plan says of a training, in numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.cli.planning import memory
from lightning_so.cli.planning.exchanged import Exchanged
from lightning_so.cli.planning.job import Job
from lightning_so.cli.planning.network import NOTHING, Network
from lightning_so.cli.planning.rehearsal import assembled
from lightning_so.cli.planning.steps import Pace, Steps, every_step, lengths, settled
from lightning_so.cli.planning.weightless import gradients, make, stepped
from lightning_so.cli.planning.world import World
from lightning_so.contract.memory import held
from lightning_so.core.assembly import Parts
from lightning_so.core.checkpoint.checkpoint import KINDS
from lightning_so.core.options import Options
from lightning_so.core.overhead.timings import Timings
from lightning_so.core.plan.table import Plan
from lightning_so.errors import UnusableError

#: Of more ranks than these, the memory of the first, whose pieces are the largest, and of the one that owns most is
#: looked at; and of more than these what these two send.
FEW, MANY = 4, 16


@dataclass(frozen=True)
class Asked:
    """What a plan is made for.

    Attributes:
        job: Makes the training.
        what: What it is called.
        options: How SecondOrder is asked to work.
        world: The ranks.
        device: Theirs.
        tokens: Rows of a layer's input at one step of a rank; None where it is not known.
    """

    job: Job
    what: str
    options: Options
    world: World
    device: torch.device
    tokens: int | None = None


@dataclass(frozen=True)
class Forecast:
    """What a training will hold, send and take.

    Attributes:
        plans: One an optimizer.
        exchanged: What the rank that sends most exchanges.
        held: Gives, by rank that is looked at, bytes by part.
        written: Gives, by kind of state, bytes of a checkpoint.
        own: Multiply-adds of the training's own step; None where the rows are not known.
        schedules: What is done at each step, by optimizer.
        engines: By optimizer, the parts of rank 0, whose tensors have no numbers.
        alone: Multiply-adds of every step beside the training's own, on one rank that does all of it.
    """

    plans: list[Plan]
    exchanged: Exchanged
    held: Callable[[], dict[int, dict[str, int]]]
    written: Callable[[], dict[str, int]]
    own: float | None
    schedules: list[Steps]
    engines: list[Parts]
    alone: list[float]

    @cached_property
    def memory(self) -> dict[int, dict[str, int]]:
        """By rank that was looked at, bytes by part: of a step on tensors without numbers."""
        return self.held()

    @property
    def heaviest(self) -> int:
        """The rank that holds most."""
        return max(self.memory, key=lambda rank: (sum(self.memory[rank].values()), -rank))

    @property
    def most(self) -> int:
        """Bytes that it holds."""
        return sum(self.memory[self.heaviest].values())

    @cached_property
    def checkpoints(self) -> dict[str, int]:
        """By kind of state, bytes of a checkpoint."""
        return self.written()

    @property
    def sent(self) -> dict[str, float]:
        """By what is sent, bytes that a rank hands over at a mean step; the largest of the ranks."""
        return self.exchanged.bytes()

    def modelled(self) -> Pace | None:
        """Lengths of steps in multiply-adds, without exchanges; None where the training's own step is not known."""
        if not self.own:
            return None
        each = [
            lengths(steps, 0.0, steps.steady, [unit.cost for unit in parts.units].__getitem__, 0.0)
            for steps, parts in zip(self.schedules, self.engines, strict=True)
        ]
        return Pace.of([self.own + ours for ours in _sums(each)], self.own, "multiply-adds")

    def timed(self, timings: Sequence[Timings], network: Network) -> Pace:
        """Lengths of steps in seconds.

        Args:
            timings: One an optimizer, as one process that does all of the work has measured them.
            network: What joins the ranks.

        Returns:
            The pace.
        """
        each = []
        ours = zip(self.schedules, self.engines, self.alone, timings, self.exchanged.ours, strict=True)
        for steps, parts, alone, times, sent in ours:
            share = [times.steady * (rank / alone if alone else 1.0) for rank in steps.steady]
            found = lengths(steps, 0.0, share, _of_kind(times, parts.units.kinds), times.rows(1))
            waits = [network.seconds(step, self.exchanged.world.ranks) for step in sent]
            each.append([step + wait for step, wait in zip(found, waits, strict=True)])
        own = self.exchanged.seconds(network, max(times.own for times in timings))
        return Pace.of([own + ours for ours in _sums(each)], own, "s")

    def waits(self, pace: Pace, timings: Sequence[Timings]) -> float:
        """Seconds of second order's exchanges in the mean step.

        Args:
            pace: What `timed` gave.
            timings: Of what.

        Returns:
            What they add to the work.
        """
        alone = self.timed(timings, NOTHING)
        return pace.own * (pace.mean - 1) - alone.own * (alone.mean - 1)

    def balance(self) -> list[float]:
        """By rank, the modelled cost of its solves at a mean step."""
        return [sum(of_rank) for of_rank in zip(*(steps.owned for steps in self.schedules), strict=True)]


def _of_kind(times: Timings, kinds: Sequence[int]) -> Callable[[int], float]:
    return lambda number: times.solves[kinds[number]]


def _sums(each: Sequence[Sequence[float]]) -> list[float]:
    """The sums of several engines' steps, whose cycles are powers of two."""
    longest = max(map(len, each))
    return [sum(of_one[step % len(of_one)] for of_one in each) for step in range(longest)]


@dataclass(frozen=True)
class _Made:
    """A training without numbers, with gradients."""

    asked: Asked
    module: nn.Module
    optimizers: list[Optimizer]

    @classmethod
    def of(cls, asked: Asked) -> "_Made":
        made = make(asked.job, asked.what)
        gradients(made.module)
        return cls(asked, made.module, stepped(made, asked.what))

    def engines(self, world: World, rank: int) -> list[Parts]:
        """A rank's, but of optimizers that no method can work before."""
        found, left, asked = list[Parts](), list[UnusableError](), self.asked
        for optimizer in self.optimizers:
            try:
                found.append(assembled(world.host(self.module, optimizer, rank), asked.options, asked.device))
            except UnusableError as error:
                left.append(error)
        if not found:
            raise left[0]
        return found

    def written(self, first: list[Parts]) -> dict[str, int]:
        """Bytes of a checkpoint by kind; `first` are the engines of rank 0."""
        one = first if self.asked.world.ranks == 1 else self.engines(World(), 0)
        return {kind: memory.of_checkpoint(self.module, one, kind) for kind in KINDS}

    def held(self, first: list[Parts]) -> dict[int, dict[str, int]]:
        """Bytes by rank and part; `first` are the engines of rank 0."""
        world, foreach, lag = self.asked.world, self.asked.device.type != "cpu", self.asked.options.lag
        ranks = {rank: self.engines(world, rank) if rank else first for rank in _ranks(first)}
        return {
            rank: memory.of_rank(world, self.module, parts, foreach=foreach, lag=lag) for rank, parts in ranks.items()
        }


def holds(asked: Asked) -> int:
    """Bytes of the rank that holds most.

    Args:
        asked: What the plan is for.

    Returns:
        The bytes.

    Raises:
        ConfigError: See `forecast`.
    """
    made = _Made.of(asked)
    return max(sum(parts.values()) for parts in made.held(made.engines(asked.world, 0)).values())


def forecast(asked: Asked) -> Forecast:
    """Make a training without numbers, and see what it holds.

    Args:
        asked: What the plan is for.

    Returns:
        The forecast.

    Raises:
        ConfigError: If it cannot be made, or optimizer, method and model do not fit together.
    """
    world = asked.world
    made = _Made.of(asked)
    first = made.engines(world, 0)
    schedules = [settled(parts) for parts in first]
    senders = range(world.ranks) if world.ranks <= MANY else _ranks(first)
    return Forecast(
        [parts.plan for parts in first],
        Exchanged.of(world, first, schedules, senders),
        partial(made.held, first),
        partial(made.written, first),
        None if asked.tokens is None else 3.0 * asked.tokens * _products([parts.plan for parts in first]),
        schedules,
        first,
        [every_step(parts) for parts in first],
    )


def _ranks(first: Sequence[Parts]) -> list[int]:
    """The ranks whose memory is looked at: one where all hold the same."""
    ranks = first[0].host.team.ranks
    if not any(parts.matrices.owned for parts in first):
        return [0]
    if ranks <= FEW:
        return [*range(ranks)]
    owned = [0] * ranks
    for parts in first:
        for stack in (stack for stack in parts.stacks if stack.owner is not None):
            owned[stack.owner or 0] += sum(map(_nbytes, held(stack.stats)))
    return sorted({0, owned.index(max(owned))})


def _nbytes(tensor: Tensor) -> int:
    return tensor.nbytes


def _products(plans: Sequence[Plan]) -> int:
    """Numbers of weights that rows are multiplied by."""
    return sum(row.numel for plan in plans for row in plan.rows if len(row.shape) > 1 and row.kind != "Embedding")
