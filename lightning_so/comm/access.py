"""Where the numbers of parameters, gradients and the optimizer's moments are on this rank.

Whole here; subclasses say it of sharded parameters. A shard is a range of a tensor's numbers in row-major order, which
may be empty. Ranks hold them in their order: a rank's piece begins where the one before it ends, empty pieces too.
"""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.core.errors import ConfigError

#: What a matrix is, where ranks hold pieces of it: the whole, or each piece for itself.
SHARDINGS = ("exact", "local")


class Access:
    """Whole parameters, equal on every rank: one process and DDP.

    Attributes:
        sharded: Whether ranks hold pieces of parameters, of which wholes are made.
        local: Whether each rank takes its piece for the whole, so that ranks have blocks of their own.
        remark: What the plan says of it.
    """

    sharded, local, remark = False, False, ""

    def shape(self, param: Tensor) -> torch.Size:
        """Shape of the whole parameter."""
        return param.shape

    def span(self, param: Tensor) -> tuple[int, int]:
        """First number of the whole parameter that this rank holds, and the one after the last."""
        return 0, self.shape(param).numel()

    def holds(self, param: Tensor) -> bool:
        """Whether this rank has a part of a parameter, and so of its gradient; all have of one without numbers."""
        first, last = self.span(param)
        return last > first or self.shape(param).numel() == 0

    def unfit(self, param: Tensor) -> str | None:
        """The reason why no method can work on a parameter where it is, or None."""
        return None

    def weight(self, param: Tensor) -> Tensor:
        """This rank's piece of what the optimizer steps on, changed in place; of any shape, in row-major order."""
        return param

    def grad(self, param: Tensor) -> Tensor | None:
        """This rank's piece of the reduced gradient, empty if the span is; None where there is none on any rank."""
        return param.grad

    def state(self, optimizer: Optimizer, param: Tensor) -> dict[str, Any]:
        """The optimizer's state of a parameter, tensors as this rank's pieces, changed in place; empty at first."""
        return optimizer.state.get(param, {})

    def cleared(self, param: Tensor) -> bool:
        """Whether the gradient was set to none since the last backward pass, where that can be seen."""
        return param.grad is None

    def withhold(self, param: Tensor) -> Any:
        """Take the gradient from the optimizer's coming step, and give what `give_back` needs."""
        grad, param.grad = param.grad, None
        return grad

    def give_back(self, param: Tensor, withheld: Any) -> None:
        """Undo `withhold`."""
        param.grad = withheld

    def groups(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        """The optimizer's param groups, with the model's parameters in them."""
        return optimizer.param_groups

    def group(self, optimizer: Optimizer, number: int) -> dict[str, Any]:
        """The hyper-parameters of one of them; its parameters need not be the model's."""
        return optimizer.param_groups[number]

    def calls(self) -> list[list[Tensor]] | None:
        """The parameters that each call of the optimizer's step finishes, in order; None where one finishes all."""
        return None


def access_of(
    params: Iterable[Tensor], model: nn.Module | None = None, engine: Any = None, *, sharding: str = "exact"
) -> Access:
    """The access that fits the parameters of an optimizer.

    Args:
        params: The parameters; plain ones may stand among DTensors and are whole on every rank.
        model: What they are in; FSDP1 is not recognized without.
        engine: DeepSpeed's engine, where there is one.
        sharding: "exact", or "local" to take this rank's rows of a DTensor for the whole.

    Returns:
        The access.

    Raises:
        ConfigError: If the parameters are sharded in a way that is not supported, or what says how is not given.

    Example:
        >>> access_of(nn.Linear(3, 2).parameters()).sharded
        False
    """
    params, local = list(params), sharding == "local"
    if engine is not None:
        if isinstance(engine.optimizer, Optimizer):  # Stage 0 in fp32; others put their own in front.
            return _whole(local=local)
        _refuse_local(local, "DeepSpeed's ZeRO")
        from lightning_so.comm.zero import ZeroAccess

        return ZeroAccess(engine)
    if any(hasattr(param, name) for param in params for name in ("ds_id", "_hp_mapping")):
        raise ConfigError("the parameters belong to a DeepSpeed engine, which was not given. Pass engine=.")
    # What was never imported is the class of nothing: plain parameters do not pay for the import.
    dtensor, fsdp1 = _loaded("torch.distributed.tensor", "DTensor"), _loaded("torch.distributed.fsdp", "FlatParameter")
    wrapper = _loaded("torch.distributed.fsdp", "FullyShardedDataParallel")
    dtensors = any(isinstance(param, dtensor) for param in params)
    flat = any(isinstance(param, fsdp1) for param in params)
    if flat or (model is not None and any(isinstance(module, wrapper) for module in model.modules())):
        from lightning_so.comm.flat import FlatAccess, refuse

        if dtensors or flat or model is None:
            refuse(dtensors=dtensors)
        _refuse_local(local, "FullyShardedDataParallel (FSDP1)")
        return FlatAccess(model)
    if dtensors:
        from lightning_so.comm.dtensor import DTensorAccess, LocalAccess

        return LocalAccess() if local else DTensorAccess()
    return _whole(local=local)


def _whole(*, local: bool) -> Access:
    """Whole parameters; where nothing is cut, a configuration that is meant for shards runs too."""
    access = Access()
    if local:
        access.remark = "sharding='local' changes nothing: parameters are whole on every rank"
    return access


def _refuse_local(local: bool, what: str) -> None:
    """Refuse to take pieces for matrices where they are cut through rows."""
    if local:
        raise ConfigError(
            f"sharding='local' takes a rank's rows for the matrix, and {what} cuts through rows: use FSDP2 "
            "(fully_shard, ModelParallelStrategy), or sharding='exact'."
        )


def _loaded(module: str, name: str) -> Any:
    """A class of a module, if the module has been imported, as something for `isinstance`."""
    return getattr(sys.modules.get(module), name, ())


def filled(like: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor, held as another is held: whole, or this rank's piece of it.

    Args:
        like: A plain tensor, a DTensor or a ShardedTensor of the same whole shape.
        whole: The numbers.

    Returns:
        One like `like`, with memory of its own.
    """
    found: Any = like.clone()
    if hasattr(found, "local_shards"):
        for shard in found.local_shards():
            cut = zip(shard.metadata.shard_offsets, shard.metadata.shard_sizes, strict=True)
            shard.tensor.copy_(whole[tuple(slice(first, first + size) for first, size in cut)])
    elif isinstance(found, _loaded("torch.distributed.tensor", "DTensor")):
        from lightning_so.comm.dtensor import DTensorAccess, local

        first, last = DTensorAccess().span(found)
        mine = local(found)
        mine.copy_(whole.reshape(-1)[first:last].view(mine.shape))
    else:
        found.copy_(whole)
    return found


def private(owner: Any, name: str) -> Any:
    """An attribute that another package does not promise to keep.

    Args:
        owner: Whose.
        name: Which.

    Returns:
        The attribute.

    Raises:
        ConfigError: If it is not there.
    """
    missing = object()
    found = getattr(owner, name, missing)
    if found is missing:
        package = type(owner).__module__.split(".")[0]
        version = getattr(sys.modules.get(package), "__version__", "unknown")
        raise ConfigError(
            f"{package} {version}: {type(owner).__name__} has no {name}, from which pieces of parameters are found. "
            "Tested with torch 2.13 and deepspeed 0.19.8: install those, or tell us of the version."
        )
    return found
