"""Bytes on a rank, by part, and those of a checkpoint."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_so.cli.planning.rehearsal import rehearse, set_warm
from lightning_so.cli.planning.world import World
from lightning_so.contract.memory import held
from lightning_so.core.assembly import Parts
from lightning_so.core.checkpoint import checkpoint
from lightning_so.core.trust.memory import curvature_bytes


def of_rank(world: World, module: nn.Module, engines: Sequence[Parts], *, foreach: bool, lag: int) -> dict[str, int]:
    """What a rank holds, by part.

    Args:
        world: The ranks.
        module: The module, with gradients.
        engines: The parts of this rank's engines.
        foreach: See `rehearse`.
        lag: Steps between a solve and its use.

    Returns:
        Bytes by part. "temporary" is what a step makes and lets go, windows of rows too.
    """
    found = world.parts(module, [parts.host for parts in engines])
    most = max(rehearse(parts, foreach=foreach, lag=lag) for parts in engines)
    found["optimizer's moments"] = sum(map(moments, engines))
    of_curvature = [curvature(parts) for parts in engines]
    for part in of_curvature[0]:
        found[part] = sum(each[part] for each in of_curvature)
    found["temporary"] = most
    return found


def moments(parts: Parts) -> int:
    """Bytes that the optimizer's state has on this rank."""
    host = parts.host
    states = (host.access.state(host.optimizer, param) for param in host.params)
    return sum(value.nbytes for state in states for value in state.values() if torch.is_tensor(value))


def curvature(parts: Parts) -> dict[str, int]:
    """What `state_bytes` counts inside a step, by part.

    Args:
        parts: The parts, after a step.

    Returns:
        Bytes of factors, of what is solved from them, of saved weights and of the room that is kept.
    """
    factors = sum(
        tensor.nbytes
        for stack in parts.stacks
        if stack.solver is not None and (stack.here or stack.shared)
        for _, tensor in stack.solver.factors(stack.stats)
    )
    saved, room = sum(stack.hidden.nbytes for stack in parts.stacks), parts.matrices.scratch.nbytes()
    rest = curvature_bytes(parts.units) - factors
    return {"factors": factors, "bases and roots": rest, "saved weights": saved, "work space": room}


def of_checkpoint(module: nn.Module, engines: Sequence[Parts], kind: str) -> int:
    """Bytes of a Trainer's checkpoint, which is of whole tensors.

    Args:
        module: The module.
        engines: The parts of the engines of one process, whose optimizers have stepped.
        kind: What it carries of curvature.

    Returns:
        The bytes of its tensors.
    """
    total = sum(tensor.nbytes for tensor in module.state_dict().values()) + sum(map(moments, engines))
    for parts in engines:
        set_warm(parts, warm=True)
        slopes = [stack.slopes for stack in parts.stacks]
        for stack in parts.stacks:
            stack.slopes = None  # A few numbers, which are read for a file.
        total += sum(map(_nbytes, held(checkpoint.write(parts, kind))))
        for stack, own in zip(parts.stacks, slopes, strict=True):
            stack.slopes = own
    return total


def _nbytes(tensor: Tensor) -> int:
    return tensor.nbytes
