"""Pieces of DTensor parameters: FSDP2 (`fully_shard`), with or without replicas."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim import Optimizer

from lightning_so.comm.access.whole import Access
from lightning_so.comm.pieces import even
from lightning_so.errors import ConfigError

#: What dimensions of meshes are called (by Lightning, by others) over which layers, not batches, are split: rows of a
#: weight that are cut along one look like those of `fully_shard`, but every rank sees the same batch.
TENSOR_PARALLEL = ("tensor_parallel", "tp")


class DTensorAccess(Access):
    """Parameters cut along their first dimension as `fully_shard` cuts them; plain ones are whole on every rank."""

    sharded = True

    def __init__(self, model: nn.Module | None = None) -> None:
        """Nothing is looked at yet.

        Args:
            model: What the parameters are in, for their names in messages.
        """
        self._model = model

    def span(self, param: Tensor) -> tuple[int, int]:
        """First number of the whole parameter that this rank holds, and the one after the last.

        Args:
            param: The parameter.

        Returns:
            The numbers; equal on ranks that are replicas of each other.

        Raises:
            ConfigError: If it is cut in another way than along its first dimension, once.
        """
        if not isinstance(param, DTensor):
            return 0, param.numel()
        placements, mesh = param.placements, param.device_mesh
        # By type: a strided shard, which tensor parallelism leaves, is no range of rows.
        names = mesh.mesh_dim_names or [None] * len(placements)
        cut = [
            type(placement) is Shard and placement.dim == 0 and name not in TENSOR_PARALLEL
            for placement, name in zip(placements, names, strict=True)
        ]
        whole = [type(placement) is Replicate for placement in placements]
        if not (all(whole[:-1]) and (whole[-1] or cut[-1])):
            raise ConfigError(
                f"{self._name(param)}a parameter of shape {tuple(param.shape)} is placed {tuple(placements)} on the "
                f"mesh {mesh.mesh_dim_names or tuple(mesh.shape)}; (Shard(0),), (Replicate(), Shard(0)) and "
                "Replicate() alone are supported, over ranks with batches of their own. Use fully_shard without tensor "
                "parallelism (tensor_parallel_size=1) and without shard_placement_fn, or leave the parameter to "
                "another optimizer, to which nothing is attached (docs/explanation/ownership.md, tensor parallelism)."
            )
        numel = param.shape.numel()
        if whole[-1]:
            return 0, numel
        rows, rank = param.shape[0], mesh.get_local_rank(len(placements) - 1)
        return even(rows, numel // max(rows, 1), mesh.size(len(placements) - 1), 0).spans[rank]

    def _name(self, param: Tensor) -> str:
        known = () if self._model is None else self._model.named_parameters()
        return next((f"{name}: " for name, of in known if of is param), "")

    def weight(self, param: Tensor) -> Tensor:
        """This rank's piece of what the optimizer steps on, changed in place; of any shape, in row-major order."""
        return local(param.detach())

    def grad(self, param: Tensor) -> Tensor | None:
        """This rank's piece of the reduced gradient, changed in place; None where there is no gradient."""
        return None if param.grad is None else local(param.grad)

    def state(self, optimizer: Optimizer, param: Tensor) -> dict[str, Any]:
        """The optimizer's state of a parameter, tensors as this rank's pieces, changed in place; empty at first."""
        return {key: local(value) for key, value in super().state(optimizer, param).items()}


class LocalAccess(DTensorAccess):
    """The same parameters, of which each rank takes its rows for the whole: blocks are the rank's own.

    Spans are still those of the whole parameter, so that ranks can tell what they have.
    """

    sharded, local = False, True

    def shape(self, param: Tensor) -> torch.Size:
        """Shape of this rank's rows."""
        self.span(param)  # Refuses what is cut in another way.
        return local(param.detach()).shape

    def holds(self, param: Tensor) -> bool:
        """See `Access.holds`; a DTensor counts the numbers of all ranks."""
        first, last = self.span(param)
        return last > first or param.numel() == 0

    def unfit(self, param: Tensor) -> str | None:
        """See `Access.unfit`: what is the same on all ranks would part, since each has a schedule of its own."""
        if not isinstance(param, DTensor) or type(param.placements[-1]) is Replicate:
            return "whole on every rank, which sharding='local' leaves alone"
        return "no rows of it on this rank" if self.shape(param).numel() == 0 < param.numel() else None


@torch.no_grad()
def local(value: Any) -> Any:
    """The local tensor of a DTensor, which shares its memory; anything else as it is."""
    return value.to_local() if isinstance(value, DTensor) else value
