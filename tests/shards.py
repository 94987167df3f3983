"""What the ranks of the pool run on sharded models: a plain loop under FSDP2, on shards of one global batch."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_so import attach
from lightning_so.core.traffic import traffic


class Small(nn.Module):
    """A convolution, attention, norms, an embedding; matrices whose rows do not divide, one with fewer than ranks."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6, dtype=dtype)
        self.conv = nn.Conv1d(6, 5, 3, padding=1, dtype=dtype)
        self.norm = nn.LayerNorm(5, dtype=dtype)
        self.up = nn.Linear(5, 9, dtype=dtype)
        self.narrow = nn.Linear(9, 3, bias=False, dtype=dtype)
        self.head = nn.Linear(3, 11, dtype=dtype)

    def forward(self, x):
        x = self.conv(self.tokens(x).mT).mT
        return self.head(torch.tanh(self.narrow(torch.tanh(self.up(self.norm(x))))))


def batch(step: int):
    """A fixed stream of batches of eight."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 11, (8, 7), generator=generator), torch.randint(0, 11, (8, 7), generator=generator)


def loss_of(model, step: int, rank: int, ranks: int):
    x, y = batch(step)
    return nn.functional.cross_entropy(model(x[rank::ranks]).flatten(0, 1), y[rank::ranks].flatten())


def train(method, base, arguments, steps, accumulate=1, clip=None, mesh=None, dtype=torch.float32, groups=False):
    """Train Small, sharded where there are several ranks; whole weights, the report, bytes sent by step, predicted."""
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    torch.manual_seed(0)
    model = Small(dtype)
    if ranks > 1:
        names = ("replicate", "shard") if mesh else ("shard",)
        mesh = init_device_mesh("cpu", mesh or (ranks,), mesh_dim_names=names)
        for layer in (model.conv, model.up):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    params = list(model.parameters())
    if groups:
        params = [{"params": params[:4]}, {"params": params[4:], "weight_decay": 0.0, "lr": 1e-3}]
    optimizer = base(params, **arguments)
    engine = attach(model, optimizer, method)
    sent = []
    for step in range(steps * accumulate):
        loss = loss_of(model, step, rank, ranks) / accumulate
        engine.before_backward(loss)
        loss.backward()
        if (step + 1) % accumulate:
            continue
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        sent.append(engine.comm.sent)
    weights = {name: whole(p) for name, p in model.named_parameters()}
    report, predicted = engine.report, traffic(engine)
    engine.detach()
    return weights, report, sent, predicted


def whole(tensor):
    """A parameter on every rank."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()
