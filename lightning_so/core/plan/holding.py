"""What curvature and the optimizer hold between steps, before any of it is there; and whether that may be."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_so.contract.block import Block, StackSpec
from lightning_so.contract.known import KNOWN
from lightning_so.contract.memory import Memory, TakesMemory, held
from lightning_so.contract.method import Method, Solves
from lightning_so.core.host import Host
from lightning_so.core.stacks.stack import Stack, stack_blocks
from lightning_so.errors import ConfigError


@dataclass(frozen=True)
class Holding:
    """Bytes of the rank that holds most, between steps, over those of its parameters.

    Attributes:
        moments: The optimizer's own moments, once it has stepped.
        factors: What is observed.
        solved: Bases, inverses, roots.
        saved: What a step needs besides: saved weights.
    """

    moments: float
    factors: float
    solved: float
    saved: float

    @property
    def all(self) -> float:
        """Between steps."""
        return self.moments + self.factors + self.solved

    def __str__(self) -> str:
        """The sum and its parts."""
        return (
            f"{self.all:.2f} bytes a byte of the parameters between steps: the optimizer's moments {self.moments:.2f}, "
            f"factors {self.factors:.2f}, bases and roots {self.solved:.2f}; saved weights {self.saved:.2f} inside one"
        )


def settle(memory: Memory, assigned: Mapping[Block, Method], host: Host) -> Holding:
    """Have blocks hold less as is asked for: with bases in float16 too, where what may be held needs that.

    Args:
        memory: What is asked for.
        assigned: The blocks, which are told, and the method of each.
        host: The training.

    Returns:
        What will be held.

    Raises:
        ConfigError: If no method can have a mode, or more must be held than may be.
    """
    _refuse(memory, assigned.values())
    found = [_told(memory, assigned, host)]
    if memory.most is not None and found[0].all > memory.most and not memory.half:
        found.append(_told(replace(memory, half=True), assigned, host))
    least = found[-1]
    if memory.most is not None and least.all > memory.most:
        short = "" if memory.short or not _able("sides", assigned.values()) else ", or take Memory(sides='short')"
        raise ConfigError(
            f"memory={memory.most:g} cannot be met, as the least is {least}. Allow {least.all + 0.005:.2f}{short}."
        )
    return least


def _refuse(memory: Memory, methods: Iterable[Method]) -> None:
    for mode, usual in (("half", False), ("sides", "both")):
        value = getattr(memory, mode)
        if value != usual and not _able(mode, methods):
            names = sorted({type(method).__name__ for method in methods})
            able = sorted(kind.__name__ for kind in KNOWN.values() if _able(mode, [kind()]))
            raise ConfigError(
                f"Memory({mode}={value!r}): {' and '.join(names)} cannot have it, {' and '.join(able)} can. Leave it "
                "out: triangles, and room inside a step alone, are what memory=Memory() has for every method."
            )


def _able(mode: str, methods: Iterable[Method]) -> bool:
    """Whether one of some methods has a mode."""
    return any(isinstance(method, TakesMemory) and mode in method.modes for method in methods)


def _told(memory: Memory, assigned: Mapping[Block, Method], host: Host) -> Holding:
    """Tell blocks, and say what is held then by the rank that holds most."""
    for block in assigned:
        block.memory = memory
    ranks = host.team.ranks if host.access.sharded else 1
    factors, all_of_it, saved = [0] * ranks, [0] * ranks, 0
    for stack in stack_blocks(assigned, host, host.team.rank if host.access.sharded else None):
        stats = stack.method.init(_outline(stack), host.base)
        observed = stack.method.factors(stats) if isinstance(stack.method, Solves) else ()
        owner = stack.blocks[0].owner
        factors[owner] += sum(tensor.nbytes for _, tensor in observed)
        all_of_it[owner] += sum(tensor.nbytes for tensor in held(stats))
        saved += sum(block.rows * block.cols * host.access.weight(block.param).itemsize for block in stack.blocks)
    weights = [(host.base.moments(group), _bytes(host, p)) for group in host.groups for p in group["params"]]
    mine = max(1, sum(size for _, size in weights)) / ranks
    most = max(range(ranks), key=lambda rank: all_of_it[rank])
    return Holding(
        sum(count * size for count, size in weights) / ranks / mine,
        factors[most] / mine,
        (all_of_it[most] - factors[most]) / mine,
        saved / ranks / mine,
    )


def _outline(stack: Stack) -> StackSpec:
    """The stack of a rank that has nothing of it: what is made for it has shapes and no numbers."""
    return StackSpec(stack.blocks, stack.dtype, stack.device, here=False, shared=False)


def _bytes(host: Host, param: Tensor) -> int:
    """Those of a whole parameter."""
    return host.access.shape(param).numel() * host.access.weight(param).itemsize
