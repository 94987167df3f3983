"""Blocks of one method and shape, with all that is kept of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from lightning_so.actions.stretch import Slopes
from lightning_so.contract.block import Block, StackSpec
from lightning_so.contract.footing import KnowsLoss
from lightning_so.contract.method import (
    Action,
    BendsByPolarFactor,
    Method,
    ObservesGradients,
    ObservesRows,
    Rotates,
    Solves,
    SolvesQuickly,
    TakesDamping,
    TakesThinning,
    TakesWays,
)
from lightning_so.contract.polishing import Polishes
from lightning_so.core.host import Host

#: Where curvature is to hold less: into about how many stacks all numbers are cut, and the least that one has, as one
#: call works on a stack and what it makes is as large.
RUNS, LEAST = 16, 2**18
#: By action, at which stages of a step there is work on matrices: before the base's step, 0, and after it, 1.
STAGES = {Action.BASE: (), Action.PRECONDITION: (0,), Action.BEND: (1,), Action.ROTATE: (0, 1)}


@dataclass(eq=False, kw_only=True)
class Stack(StackSpec):
    """A stack, its method, and what is kept of its blocks.

    Whether the method is of a kind (`ObservesRows`, ...) is looked up once: comparing a protocol's members takes long.

    Attributes:
        method: The method of all its blocks.
        observer: The method, if it observes gradients.
        tapped: The method, if it observes rows.
        solver: The method, if it has units.
        sprinter: The method, if it has a faster solve too.
        rotator: The method, if it rotates.
        damped: The method, if its damping can be set.
        thinner: The method, if it can take fewer rows.
        versatile: The method, if it computes in one of several ways.
        orthogonaliser: The method, if it bends by polar factors.
        knower: The method, if it preconditions and knows how the loss is written.
        rotates: Whether the moments of its warm blocks are in its bases: those of preconditioned gradients stay plain.
        polisher: The method, if it polishes what the base did to these blocks in its bases.
        stats: What the method keeps, opaque to the engine.
        slopes: Those along its bent updates; None where these keep the base's lengths.
        hidden: Room for the saved parameters p0, or for this rank's pieces of them; see `Matrices.make_room`.
        saved: Views of `hidden`, by block one a parameter.
    """

    method: Method
    observer: ObservesGradients | None
    tapped: ObservesRows | None
    solver: Solves | None
    sprinter: SolvesQuickly | None
    rotator: Rotates | None
    damped: TakesDamping | None
    thinner: TakesThinning | None
    versatile: TakesWays | None
    orthogonaliser: BendsByPolarFactor | None
    knower: KnowsLoss | None
    rotates: bool
    polisher: Polishes | None
    stats: Any = None
    slopes: Slopes | None = None
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    saved: list[list[Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, spec: StackSpec, method: Method, host: Host) -> "Stack":
        """A stack without room for saved parameters and without statistics.

        Args:
            spec: Its blocks.
            method: Their method.
            host: The training.

        Returns:
            The stack.
        """
        rotator = method if isinstance(method, Rotates) else None
        return cls(
            **vars(spec),
            method=method,
            observer=method if isinstance(method, ObservesGradients) else None,
            tapped=method if isinstance(method, ObservesRows) else None,
            solver=method if isinstance(method, Solves) else None,
            sprinter=method if isinstance(method, SolvesQuickly) else None,
            rotator=rotator,
            damped=method if isinstance(method, TakesDamping) else None,
            thinner=method if isinstance(method, TakesThinning) else None,
            versatile=method if isinstance(method, TakesWays) else None,
            orthogonaliser=method if isinstance(method, BendsByPolarFactor) else None,
            knower=method if host.base.linear and isinstance(method, KnowsLoss) else None,
            rotates=rotator is not None and not host.base.linear,
            polisher=method if isinstance(method, Polishes) and method.polish and not spec.edge else None,
        )

    @property
    def whole(self) -> bool:
        """Whether this rank has whole matrices, so that `hidden` is a batch of them."""
        return self.hidden.ndim == 3

    @property
    def observing(self) -> ObservesGradients:
        """The method of a stack that is shown gradients."""
        return self._known(self.observer, "observes no gradients")

    @property
    def tapping(self) -> ObservesRows:
        """The method of a stack whose layers are watched."""
        return self._known(self.tapped, "observes no rows")

    @property
    def solving(self) -> Solves:
        """The method of a stack that has been given a unit."""
        return self._known(self.solver, "has no units")

    @property
    def sprinting(self) -> SolvesQuickly:
        """The method of a stack whose units are solved quickly."""
        return self._known(self.sprinter, "has no faster solve")

    @property
    def turning(self) -> Rotates:
        """The method of a stack that is being rotated."""
        return self._known(self.rotator, "has no bases")

    def _known(self, method: Any, lack: str) -> Any:
        assert method is not None, f"{type(self.method).__name__} {lack}"
        return method

    def action(self, host: Host, block: Block, warm: bool) -> Action:
        """What happens to one of its blocks, warm or cold, at a step."""
        return self.method.action(host.base, host.group(block.group), block, warm)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What the method keeps, each of shape (B, ...), under names that do not depend on the stack."""
        if self.stats is not None:
            yield from self.method.tensors(self.stats)


def methods_of(stacks: Iterable[Stack]) -> list[Method]:
    """The methods of stacks, each once, in order of their first."""
    return list({id(stack.method): stack.method for stack in stacks}.values())


def stack_blocks(assigned: Mapping[Block, Method], host: Host) -> list[Stack]:
    """Group blocks that one batched call can serve, in order of first appearance.

    Args:
        assigned: The blocks, and the method of each.
        host: The training.

    Returns:
        The stacks, without room for saved parameters and without statistics.
    """
    kinds: dict[tuple, list[Block]] = {}
    for block, method in assigned.items():
        weight = host.access.weight(block.param)
        layer = block.tap and (id(block.tap.layer), block.tap.groups)
        matrix = (block.rows, block.cols, block.shape, weight.dtype, weight.device)
        kinds.setdefault((id(method), *matrix, block.edge, block.bias is None, layer), []).append(block)
    stacks, most = list[Stack](), room(assigned)
    for alike in kinds.values():
        method, weight = assigned[alike[0]], host.access.weight(alike[0].param)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        apart: dict[tuple[int | None, int], list[Block]] = {}
        for block in alike:
            apart.setdefault((block.owner, block.call), []).append(block)
        lean = alike[0].memory is not None
        for (owner, _), members in apart.items():
            place = dtype, weight.device, len(alike), owner in (None, host.team.rank), owner is None
            cut = _cut(members, most) if lean else [members]
            stacks += [Stack.of(StackSpec(some, *place), method, host) for some in cut]
    return stacks


def room(blocks: Iterable[Block]) -> int:
    """How many numbers one call may work on, where curvature is to hold less, given all blocks."""
    return max(LEAST, sum(block.rows * block.cols for block in blocks) // RUNS)


def _cut(blocks: Sequence[Block], most: int) -> Iterator[list[Block]]:
    """Blocks in runs of at most so many numbers, which share a work space of that size; a parameter's stay together."""
    some, numbers = list[Block](), 0
    for _, parts in groupby(blocks, key=lambda block: id(block.param)):
        of_param = list(parts)
        size = sum(block.rows * block.cols for block in of_param)
        if some and numbers + size > most:
            yield some
            some, numbers = [], 0
        some, numbers = some + of_param, numbers + size
    yield some


def dampen(stacks: Iterable[Stack], damping: float) -> None:
    """Set the damping of methods that have one, for solves to come.

    Args:
        stacks: Their stacks.
        damping: In units of one sample's loss.
    """
    for stack in stacks:
        if stack.damped is not None:
            stack.damped.dampen(stack.stats, damping)
