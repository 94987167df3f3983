"""When DDP's gradients leave: a bucket at a time, in the same order on every rank."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel


def tell(
    model: DistributedDataParallel,
    listeners: Callable[[], Iterable[Callable[[list[Tensor]], None]]],
    reduce: Callable[[Any], Any] | None = None,
) -> None:
    """Tell of every bucket of gradients, just before it is reduced.

    Args:
        model: The model; it takes one communication hook, which this is.
        listeners: Those to call with the parameters of the bucket.
        reduce: Reduces a bucket and gives a future of it, as a hook of torch whose state is bound; None for the mean.
    """
    group: Any = model.process_group
    reduced = reduce or partial(allreduce_hook, group)

    def hook(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        for listener in listeners():
            listener(bucket.parameters())
        return reduced(bucket)

    model.register_comm_hook(None, hook)
