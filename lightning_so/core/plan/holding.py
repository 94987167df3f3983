"""What curvature and the optimizer hold between steps, before any of it is there; and whether that may be."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_so.contract.block import Block
from lightning_so.contract.known import KNOWN
from lightning_so.contract.memory import Memory, TakesMemory, held
from lightning_so.contract.method import Method, Solves
from lightning_so.core.host import Host
from lightning_so.core.plan.outlines import needed, outline
from lightning_so.core.plan.owners import appoint
from lightning_so.core.stacks.stack import stack_blocks
from lightning_so.errors import ConfigError

#: Tried one after the other where bytes are bounded: each has more traffic than the one before.
SHARES = (0.75, 0.5, 0.25, 0.0)


@dataclass(frozen=True)
class Holding:
    """Bytes of the rank that holds most, between steps, over those of its parameters.

    Attributes:
        moments: The optimizer's own moments, once it has stepped.
        factors: What is observed.
        solved: Bases, inverses, roots.
        saved: What a step needs besides: saved weights.
        alone: Whether one process holds all of a share that was to be on every rank.
    """

    moments: float
    factors: float
    solved: float
    saved: float
    alone: bool = False

    @property
    def all(self) -> float:
        """Between steps."""
        return self.moments + self.factors + self.solved

    def __str__(self) -> str:
        """The sum and its parts."""
        share = "; share counts from two ranks on, and one process holds all" if self.alone else ""
        return (
            f"{self.all:.2f} bytes a byte of the parameters between steps: the optimizer's moments {self.moments:.2f}, "
            f"factors {self.factors:.2f}, bases and roots {self.solved:.2f}; saved weights {self.saved:.2f} inside "
            f"one{share}"
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
    _refuse(memory, assigned.values(), host)
    least = Holding(0, 0, 0, 0)
    for each in _tried(memory, assigned.values(), host):
        least = _told(each, assigned, host)
        if memory.most is None or least.all <= memory.most:
            return least
    short = "" if memory.short or not _able("sides", assigned.values()) else ", or take Memory(sides='short')"
    raise ConfigError(
        f"memory={memory.most:g} cannot be met, as the least is {least}. Allow {least.all + 0.005:.2f}{short}."
    )


def _tried(memory: Memory, methods: Collection[Method], host: Host) -> Iterator[Memory]:
    """What is asked for, and by how much less it may be if that is too much."""
    yield memory
    if not memory.half:
        yield (memory := replace(memory, half=True))
    if host.team.ranks > 1 and not host.access.sharded and _able("share", methods):
        yield from (replace(memory, share=share) for share in SHARES if share < memory.share)


def _refuse(memory: Memory, methods: Collection[Method], host: Host) -> None:
    """Refuse a mode that no method can have, or that means nothing to these ranks."""
    for mode, usual in (("half", False), ("sides", "both"), ("share", 1.0)):
        value = getattr(memory, mode)
        if value != usual and not _able(mode, methods):
            names = sorted({type(method).__name__ for method in methods})
            able = sorted(kind.__name__ for kind in KNOWN.values() if _able(mode, [kind()]))
            raise ConfigError(
                f"Memory({mode}={value!r}): {' and '.join(names)} cannot have it, {' and '.join(able)} can. Leave it "
                "out: triangles, and room inside a step alone, are what memory=Memory() has for every method."
            )
    if memory.share < 1 and (host.access.sharded or host.access.local):
        where = "sharding='local'" if host.access.local else "FSDP and DeepSpeed"
        raise ConfigError(
            f"Memory(share={memory.share:g}) is for DDP, and ranks hold pieces of these parameters: under {where} "
            "curvature is with its owner alone already. Leave share out."
        )


def _able(mode: str, methods: Iterable[Method]) -> bool:
    """Whether one of some methods has a mode; what is solved may be with its owner, whatever it is."""
    if mode == "share":
        return any(isinstance(method, Solves) for method in methods)
    return any(isinstance(method, TakesMemory) and mode in method.modes for method in methods)


def _told(memory: Memory, assigned: Mapping[Block, Method], host: Host) -> Holding:
    """Tell blocks, and say what is held then by the rank that holds most."""
    for block in assigned:
        block.memory = memory
    appoint(assigned, host, memory.share)
    ranks = range(host.team.ranks)
    factors, all_of_it, saved = [0 for _ in ranks], [0 for _ in ranks], 0
    for stack in stack_blocks(assigned, host):
        stats = outline(stack, host.base)
        observed = stack.method.factors(stats) if isinstance(stack.method, Solves) else ()
        of_factors, of_all = sum(tensor.nbytes for _, tensor in observed), sum(tensor.nbytes for tensor in held(stats))
        for rank in ranks if stack.owner is None or needed(stack, host.base) else [stack.owner]:
            factors[rank] += of_factors
            all_of_it[rank] += of_all
        saved += sum(block.rows * block.cols * host.access.weight(block.param).itemsize for block in stack.blocks)
    # The optimizer makes no moments of what is frozen.
    weights = [
        (host.base.moments(group) * p.requires_grad, _bytes(host, p)) for group in host.groups for p in group["params"]
    ]
    pieces = len(ranks) if host.access.sharded else 1
    mine = max(1, sum(size for _, size in weights)) / pieces
    most = max(ranks, key=lambda rank: all_of_it[rank])
    return Holding(
        sum(count * size for count, size in weights) / pieces / mine,
        factors[most] / mine,
        (all_of_it[most] - factors[most]) / mine,
        saved / pieces / mine,
        memory.share < 1 and len(ranks) == 1,
    )


def _bytes(host: Host, param: Tensor) -> int:
    """Those of a whole parameter."""
    return host.access.shape(param).numel() * host.access.weight(param).itemsize
