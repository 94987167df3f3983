"""Lightning's FSDP1 strategy, on CPU too."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from pytorch_lightning.strategies import FSDPStrategy
from torch import nn
from torch.optim import Optimizer

from lightning_so.comm.fsdp1_api import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    OptimStateKeyType,
    StateDictType,
    enable_wrap,
    init_device_mesh,
)
from lightning_so.strategies.names import twins

__all__ = ["CLASSES", "SecondOrderFSDPStrategy"]


class _OnCPU(FSDPStrategy if TYPE_CHECKING else object):
    """What a CPU needs, to stand before the FSDPStrategy of either import name of Lightning."""

    @property
    def _on_cpu(self) -> bool:
        return self.root_device.type == "cpu"

    def setup_environment(self) -> None:
        """Set up the processes; a mesh that is given by its shape is one of CPUs, not of GPUs."""
        shape = self.kwargs.get("device_mesh")
        if not (self._on_cpu and isinstance(shape, tuple)):
            super().setup_environment()
            return
        with self._without("device_mesh"):
            super().setup_environment()
        self.kwargs["device_mesh"] = init_device_mesh("cpu", shape)

    def _setup_model(self, model: nn.Module) -> nn.Module:
        if not self._on_cpu or any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
            return super()._setup_model(model)
        model = FullyShardedDataParallel(model, **self._arguments())
        # The rest is as for a model that was wrapped by hand; of which the policy of wrapping would make a warning.
        with self._without("auto_wrap_policy"):
            return super()._setup_model(model)

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Tell `wrap` inside `configure_model` which device is meant."""
        if not self._on_cpu:
            with super().model_sharded_context():
                yield
            return
        with enable_wrap(wrapper_cls=FullyShardedDataParallel, **self._arguments()):
            yield

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights on rank 0, or this rank's pieces, as the strategy was told."""
        if not self._whole_on_cpu:
            return super().lightning_module_state_dict()
        model = self._wrapped()
        with self._gathering(model):
            return model.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole state on rank 0, or this rank's pieces, as the strategy was told."""
        if not self._whole_on_cpu:
            return super().optimizer_state(optimizer)
        model = self._wrapped()
        with self._gathering(model):
            state = FullyShardedDataParallel.optim_state_dict(model, getattr(optimizer, "_optimizer", optimizer))
            if self.global_rank == 0:
                # By number, as optimizers of torch have it.
                state = FullyShardedDataParallel.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_ID, model)
            return state

    @property
    def _whole_on_cpu(self) -> bool:
        return self._on_cpu and self._state_dict_type == "full"

    def _wrapped(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _gathering(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Gather on rank 0, but do not offload: what is on CPU is not copied there, and torch frees the original.

        Args:
            model: The wrapped model.

        Returns:
            The context in which states are whole.
        """
        return FullyShardedDataParallel.state_dict_type(
            model,
            StateDictType.FULL_STATE_DICT,
            FullStateDictConfig(offload_to_cpu=False, rank0_only=True),
            FullOptimStateDictConfig(offload_to_cpu=False, rank0_only=True),
        )

    def _arguments(self) -> dict[str, Any]:
        """What torch wraps with; it takes no CPU unless the device is given (an index, as GPUs have, says nothing)."""
        return {
            "cpu_offload": self.cpu_offload,
            "mixed_precision": self.mixed_precision_config,
            "sharding_strategy": self.sharding_strategy,
            "device_id": self.root_device,
            **self.kwargs,
        }

    @contextmanager
    def _without(self, name: str) -> Iterator[None]:
        """Hide one of torch's arguments for a while.

        Args:
            name: The argument, which may be missing.
        """
        before = self.kwargs
        self.kwargs = {key: value for key, value in before.items() if key != name}
        try:
            yield
        finally:
            self.kwargs = before


class SecondOrderFSDPStrategy(_OnCPU, FSDPStrategy):
    """Fully sharded data parallel (FSDP1) on GPUs, where it is Lightning's own, and on CPUs, which that refuses.

    `Trainer(strategy="fsdp_so")` makes it after `import lightning_so`. In a Trainer of `lightning.pytorch` the name
    does too; with arguments, its class is `CLASSES["lightning.pytorch"]`. Prefer FSDP2 (`ModelParallelStrategy`) for
    new code: it runs on CPU as it is.

    Mixed precision on CPU casts parameters and inputs, and nothing else: Lightning's autocast is one of GPUs.
    Lightning clips by norm under no FSDP1: call `self.trainer.strategy.model.clip_grad_norm_(value)` in the module's
    `configure_gradient_clipping`.

    Args:
        args: As for Lightning's `FSDPStrategy`.
        kwargs: As for Lightning's `FSDPStrategy`: `auto_wrap_policy`, `sharding_strategy`, ...

    Example:
        >>> SecondOrderFSDPStrategy(sharding_strategy="SHARD_GRAD_OP").kwargs["use_orig_params"]
        True
    """


#: The strategy for each import name of Lightning that is installed.
CLASSES = twins(SecondOrderFSDPStrategy)
# By its own name, too: a class that a module does not hold cannot be pickled.
LightningSecondOrderFSDPStrategy = CLASSES.get("lightning.pytorch")
