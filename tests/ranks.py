"""What the ranks of the pool run: a plain loop with DDP, on shards of one global batch."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from lightning_so import attach
from lightning_so.core.share import traffic
from tests.problems import Net, batch


def train(
    method,
    base,
    arguments,
    steps,
    accumulate=1,
    clip=None,
    poison=None,
    drop=None,
    shard=True,
    dtype=torch.float32,
    nudge=False,
):
    """Train Net; the ranks see strided shards of the global batch. Gives weights, report, bytes sent and predicted."""
    several = dist.is_initialized() and shard
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    torch.manual_seed(0)
    model = Net(dtype)
    if nudge:
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.nextafter(p, torch.full_like(p, 9.0)))
    wrapped = DDP(model) if several else model
    optimizer = base(model.parameters(), **arguments)
    engine = attach(model, optimizer, method)
    sent = []
    for step in range(steps * accumulate):
        x, y = batch(step, dtype)
        loss = torch.nn.functional.cross_entropy(wrapped(x[rank::ranks]), y[rank::ranks]) / accumulate
        loss.backward()
        if (step + 1) % accumulate:
            continue
        # After the reduction, as a faulty communication hook or a device would.
        if poison == (rank, step):
            model.tall.weight.grad[0, 0] = float("nan")
        if drop == (rank, step):
            model.tall.weight.grad = None
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        sent.append(engine.comm.sent)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    report, predicted = engine.report, traffic(engine)
    engine.detach()
    return weights, report, sent, predicted
