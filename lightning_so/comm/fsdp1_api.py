"""What FSDP1 wraps modules with, for strategies: process groups and their classes are reached through this room."""

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    OptimStateKeyType,
    StateDictType,
)
from torch.distributed.fsdp.wrap import enable_wrap

__all__ = [
    "FullOptimStateDictConfig",
    "FullStateDictConfig",
    "FullyShardedDataParallel",
    "OptimStateKeyType",
    "StateDictType",
    "enable_wrap",
    "init_device_mesh",
]
