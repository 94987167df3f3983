"""All that a plan says of a training, in numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.cli.planning import memory
from lightning_so.cli.planning.job import Job
from lightning_so.cli.planning.rehearsal import assembled
from lightning_so.cli.planning.steps import Pace, Steps, every_step, lengths, settled
from lightning_so.cli.planning.weightless import gradients, make, stepped, weightless
from lightning_so.cli.planning.world import World
from lightning_so.comm.supposed import Supposed
from lightning_so.contract.memory import held
from lightning_so.core.assembly import Parts
from lightning_so.core.checkpoint.checkpoint import KINDS
from lightning_so.core.host import Host
from lightning_so.core.options import Options
from lightning_so.core.overhead.timings import Timings
from lightning_so.core.plan.table import Plan
from lightning_so.core.trust.traffic import traffic
from lightning_so.errors import UnusableError

#: Of more ranks than these, the memory of the first, of the last and of the one that owns most is looked at; and of
#: more than these what these three send.
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
        memory: By rank that was looked at, bytes by part.
        sent: By what is sent, bytes that a rank hands over at a mean step; the largest of the ranks.
        checkpoints: By kind of state, bytes of a checkpoint.
        own: Multiply-adds of the training's own step; None where the rows are not known.
        schedules: What is done at each step, by optimizer.
        engines: By optimizer, the parts of rank 0, whose tensors have no numbers.
        alone: Multiply-adds of every step beside the training's own, on one rank that does all of it.
    """

    plans: list[Plan]
    memory: dict[int, dict[str, int]]
    sent: dict[str, float]
    checkpoints: dict[str, int]
    own: float | None
    schedules: list[Steps]
    engines: list[Parts]
    alone: list[float]

    @property
    def heaviest(self) -> int:
        """The rank that holds most."""
        return max(self.memory, key=lambda rank: (sum(self.memory[rank].values()), -rank))

    @property
    def most(self) -> int:
        """Bytes that it holds."""
        return sum(self.memory[self.heaviest].values())

    def modelled(self) -> Pace | None:
        """Lengths of steps in multiply-adds; None where the training's own step is not known."""
        if not self.own:
            return None
        each = [
            lengths(steps, 0.0, steps.steady, [unit.cost for unit in parts.units].__getitem__, 0.0)
            for steps, parts in zip(self.schedules, self.engines, strict=True)
        ]
        return Pace.of([self.own + ours for ours in _sums(each)], self.own, "multiply-adds")

    def timed(self, timings: Sequence[Timings]) -> Pace:
        """Lengths of steps in seconds.

        Args:
            timings: One an optimizer, as one process that does all of the work has measured them.

        Returns:
            The pace.
        """
        each = []
        for steps, parts, alone, times in zip(self.schedules, self.engines, self.alone, timings, strict=True):
            share = [times.steady * (rank / alone if alone else 1.0) for rank in steps.steady]
            each.append(lengths(steps, 0.0, share, _of_kind(times, parts.units.kinds), times.rows(1)))
        own = max(times.own for times in timings)
        return Pace.of([own + ours for ours in _sums(each)], own, "s")

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
        with weightless():
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

    def held(self, first: list[Parts]) -> dict[int, dict[str, int]]:
        """Bytes by rank and part; `first` are the engines of rank 0."""
        world, foreach = self.asked.world, self.asked.device.type != "cpu"
        ranks = {rank: self.engines(world, rank) if rank else first for rank in _ranks(first)}
        return {rank: memory.of_rank(world, self.module, parts, foreach=foreach) for rank, parts in ranks.items()}


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
    with weightless():
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
    with weightless():
        first = made.engines(world, 0)
        held_by = made.held(first)
        one = first if world.ranks == 1 else made.engines(World(), 0)
        checkpoints = {kind: memory.of_checkpoint(made.module, one, kind) for kind in KINDS}
        schedules = [settled(parts) for parts in first]
        senders = range(world.ranks) if world.ranks <= MANY else [*held_by]
        sent = max(sum(map(partial(_sent, rank), first, schedules)) for rank in senders)
        return Forecast(
            [parts.plan for parts in first],
            held_by,
            {"curvature": sent, **_own_traffic(world, [parts.host for parts in first])},
            checkpoints,
            None if asked.tokens is None else 3.0 * asked.tokens * _products([parts.plan for parts in first]),
            schedules,
            first,
            [every_step(parts) for parts in first],
        )


def _sent(rank: int, parts: Parts, steps: Steps) -> float:
    """Bytes that a rank sends at a mean step."""
    host, ranks = parts.host, parts.host.team.ranks
    if ranks == 1:
        return 0.0
    there = Supposed(rank, ranks)
    due = [list(chain.from_iterable(by_rank)) for by_rank in steps.solves]
    return traffic(parts.units, replace(host, world=there, team=there), parts.matrices, due=due)


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
    return sorted({0, owned.index(max(owned)), ranks - 1})


def _nbytes(tensor: Tensor) -> int:
    return tensor.nbytes


def _own_traffic(world: World, hosts: Sequence[Host]) -> dict[str, float]:
    """Bytes that a rank hands over for the training itself."""
    if world.ranks == 1:
        return {}
    size = float(sum(param.nbytes for host in hosts for param in host.params))
    # Under ZeRO and FSDP weights come together for a forward and a backward pass, or once after the step.
    gathers = {"ddp": 0, "fsdp": 2, "zero_3": 2}.get(world.strategy, 1)
    return {"gradients (the training's own)": size} | (
        {"weights (the training's own)": gathers * size / world.ranks} if gathers else {}
    )


def _products(plans: Sequence[Plan]) -> int:
    """Numbers of weights that rows are multiplied by."""
    return sum(row.numel for plan in plans for row in plan.rows if len(row.shape) > 1 and row.kind != "Embedding")
