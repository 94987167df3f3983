"""One batch in several ways, in float64: whole, in micro-batches, through a checkpoint, on the ranks of the pool."""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from lightning_so import EKFAC, KFAC, attach
from tests.contract import test_contract
from tests.contract.test_contract import LAYERS, made
from tests.support import noted

BASES = {
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.01}),
    "sgd": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
}
#: Labels that are drawn differ with the number of ranks and micro-batches.
METHODS = [
    replace(method, fisher="empirical") if isinstance(method, KFAC | EKFAC) else method
    for method in test_contract.METHODS
]
SAMPLES = 4


def axis(layer) -> int:
    """Where the samples of an input are."""
    return int(isinstance(layer, nn.LSTM | nn.MultiheadAttention) and not layer.batch_first)


class Called(nn.Module):
    """A layer that is called as its type wants it, and gives one tensor."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        found = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        return found[0] if isinstance(found, tuple) else found


def drawn(layer, name, generator):
    """A batch of inputs, with `SAMPLES` of them."""
    shape = list(LAYERS[name][1])
    shape[axis(layer)] = SAMPLES
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (9 * x.sigmoid()).long() if isinstance(layer, nn.Embedding) else x


def walked(name, number, base, way, steps=14):
    """The parameters after some steps of method `number` on layer `name`: in one process, or sharded over the ranks."""
    layer = made(name).double()
    model, (cls, arguments) = Called(layer), BASES[base]
    wrapped = DDP(model) if way == "ranks" else model
    optimizer = cls(model.parameters(), **arguments)
    engine = attach(model, optimizer, METHODS[number])
    generator, samples = torch.Generator().manual_seed(0), axis(layer)
    for _ in range(steps):
        x = drawn(layer, name, generator)
        target = torch.randn(model(x).shape, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        parts = {"micro": 2, "ranks": dist.get_world_size() if way == "ranks" else 1}.get(way, 1)
        chunks = list(zip(x.chunk(parts, samples), target.chunk(parts, samples), strict=True))
        if way == "ranks":
            chunks = [chunks[dist.get_rank()]]
        for part, wanted in chunks:
            found = noted.checkpoint(wrapped, part, use_reentrant=False) if way == "checkpointed" else wrapped(part)
            loss = (found - wanted).square().mean() / len(chunks)
            engine.before_backward(loss)
            loss.backward()
        optimizer.step()
    report, parameters = engine.report, [p.detach().clone() for p in model.parameters()]
    noted.ran([engine], "ddp" if way == "ranks" else "one", noted.LOOP, accumulation=way == "micro")
    engine.detach()
    return parameters, report.rotated + report.bent + report.preconditioned


def works(name, number, base) -> bool:
    """Whether the pairing is no refusal."""
    try:
        layer = made(name)
        attach(layer, BASES[base][0](layer.parameters(), **BASES[base][1]), METHODS[number]).detach()
    except ValueError:
        return False
    return True
