"""Which access, forward pass and communicator fit a training."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from lightning_so.comm.access.whole import Access
from lightning_so.comm.forward.plain import Forward
from lightning_so.comm.local import Local
from lightning_so.comm.replicated import Replicated
from lightning_so.comm.sharded import Sharded
from lightning_so.errors import ConfigError

#: Of an optimizer's parameters, and the model where it is given: their access, or None for those of others.
Maker = Callable[[list[Tensor], nn.Module | None], Access | None]
_REGISTERED: dict[str, Maker] = {}


def register(kind: type[Access], make: Maker) -> None:
    """Make parameters known that are held in a way of their own; they are asked for before all others but DeepSpeed's.

    Args:
        kind: The class of their access; what was registered under its name before is forgotten.
        make: Makes the access, or gives None where the parameters are held in another way.
    """
    _REGISTERED[f"{kind.__module__}.{kind.__qualname__}"] = make


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
        ConfigError: If the parameters are sharded in a way that is not supported, what says how is not given, or one
            has no shape yet.

    Example:
        >>> access_of(nn.Linear(3, 2).parameters()).sharded
        False
    """
    params, local = list(params), sharding == "local"
    _refuse_lazy(params, model)
    if engine is not None:
        if isinstance(engine.optimizer, Optimizer):  # Stage 0 in fp32; others put their own in front.
            return _whole(local=local)
        _refuse_local(local, "DeepSpeed's ZeRO")
        from lightning_so.comm.access.zero import ZeroAccess

        return ZeroAccess(engine)
    if any(hasattr(param, name) for param in params for name in ("ds_id", "_hp_mapping")):
        raise ConfigError("the parameters belong to a DeepSpeed engine, which was not given. Pass engine=.")
    for make in _REGISTERED.values():
        if (access := make(params, model)) is not None:
            if local:
                raise ConfigError(
                    f"sharding='local' is for FSDP2, and parameters are held by {type(access).__name__}: take 'exact'."
                )
            return access
    # What was never imported is the class of nothing: plain parameters do not pay for the import.
    dtensor, fsdp1 = _loaded("torch.distributed.tensor", "DTensor"), _loaded("torch.distributed.fsdp", "FlatParameter")
    wrapper = _loaded("torch.distributed.fsdp", "FullyShardedDataParallel")
    dtensors = any(isinstance(param, dtensor) for param in params)
    flat = any(isinstance(param, fsdp1) for param in params)
    if flat or (model is not None and any(isinstance(module, wrapper) for module in model.modules())):
        from lightning_so.comm.access.fsdp1 import FlatAccess, refuse

        if dtensors or flat or model is None:
            refuse(dtensors=dtensors)
        _refuse_local(local, "FullyShardedDataParallel (FSDP1)")
        return FlatAccess(model)
    if dtensors:
        from lightning_so.comm.access.fsdp2 import DTensorAccess, LocalAccess

        return LocalAccess(model) if local else DTensorAccess(model)
    return _whole(local=local)


def _refuse_lazy(params: Sequence[Tensor], model: nn.Module | None) -> None:
    """Refuse parameters of lazy layers, whose shape the first forward pass gives."""
    lazy = {param for param in params if isinstance(param, UninitializedParameter)}
    if lazy:
        names = [name for name, param in model.named_parameters() if param in lazy] if model is not None else []
        raise ConfigError(
            f"{len(lazy)} parameters of lazy layers have no shape before the first forward pass"
            f"{': ' if names else ''}{', '.join(names[:3])}. Call the model once on a batch before training starts, as "
            f"in the module's __init__ or configure_model, or give the layers their sizes."
        )


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


def forward_of(params: Sequence[Tensor], access: Access, comm: Local, engine: Any = None) -> Forward:
    """The forward pass's side of some parameters; a collective with DeepSpeed.

    Args:
        params: The parameters, all that are trained.
        access: Where their numbers are.
        comm: How ranks talk.
        engine: DeepSpeed's engine, where there is one.

    Returns:
        The side.

    Raises:
        ConfigError: If the engine keeps weights in a way that is not supported.
    """
    if engine is None:
        return Forward(params, access)
    from lightning_so.comm.forward.zero import engine_forward

    return engine_forward(params, access, comm, engine)


def ambient(*, sharded: bool) -> Local:
    """The communicator of this process.

    Args:
        sharded: Whether it is to exchange pieces of parameters.

    Returns:
        `Sharded` for pieces; else `Replicated` inside an initialised world of several ranks, `Local` outside.
    """
    if sharded:
        return Sharded()
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return Replicated() if several else Local()


def standing() -> tuple[int, int]:
    """This process among all: its rank and how many there are; (0, 1) outside of an initialised world."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
