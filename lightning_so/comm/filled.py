"""A whole tensor, held as another is held."""

from typing import Any

from torch import Tensor

from lightning_so.comm.choose import _loaded


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
        from lightning_so.comm.access.fsdp2 import DTensorAccess, local

        first, last = DTensorAccess().span(found)
        mine = local(found)
        mine.copy_(whole.reshape(-1)[first:last].view(mine.shape))
    else:
        found.copy_(whole)
    return found
