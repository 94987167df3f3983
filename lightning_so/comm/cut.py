"""A net whose parameters are cut along their first dimension, over all ranks."""

from torch import nn
from torch.distributed import get_world_size, init_device_mesh
from torch.distributed.fsdp import fully_shard


def cut(net: nn.Module) -> nn.Module:
    """Cut a net on the CPU by FSDP2, as one unit.

    Args:
        net: The net; it is changed in place.

    Returns:
        The net.
    """
    fully_shard(net, mesh=init_device_mesh("cpu", (get_world_size(),)))
    return net
