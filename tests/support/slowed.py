"""Ranks of unequal speed, by a clock that a test sets: what they solve takes as long as it says."""

import copy
import io

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from lightning_so import attach
from lightning_so.core.overhead.clock import Clock


class Told(Clock):
    """A solve takes the seconds of the moment at which it ends."""

    def __init__(self, seconds) -> None:
        self.device, self.takes = "told", seconds

    def moment(self):
        return self.takes()

    def seconds(self, begin, end):
        return end


class Layers(nn.Module):
    """Six layers of one shape, so that ranks solve what can be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8, dtype=torch.float64) for _ in range(6))
        self.last = nn.Linear(8, 3, dtype=torch.float64)

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.last(x)


def _batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (8,), generator=generator)


class Run:
    """A training whose solves take `seconds(rank, step)`."""

    def __init__(self, method, seconds, *, balance=True, lag=0) -> None:
        several = dist.is_initialized()
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        torch.manual_seed(0)
        self.model = Layers()
        self.wrapped = DDP(self.model, find_unused_parameters=self.ranks > 2) if several else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.engine = attach(self.model, self.optimizer, method, balance=balance, lag=lag)
        self.told, self.here = [], []
        self.engine.tell = self.told.append
        if self.engine.parts.balance is not None:
            clock = Told(lambda: seconds(self.rank, self.engine.report.step))
            self.engine.parts.balance.times.clock = clock

    def walk(self, steps):
        for step in steps:
            x, y = _batch(step)
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.wrapped(x[self.rank :: self.ranks]), y[self.rank :: self.ranks])
            self.engine.before_backward(loss)
            loss.backward()
            self.optimizer.step()
            self.here.append(self.engine.report.solved_here)
        return self

    @property
    def weights(self):
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


def trained(method, seconds, steps, lag=0):
    """Weights, what was said, units moved, owners at the end, and units that this rank had solved by each step."""
    run = Run(method, seconds, lag=lag).walk(range(steps))
    engine = run.engine
    found = run.weights, run.told, engine.report.moved, [*engine.parts.units.schedule.owner], run.here
    engine.detach()
    return found


def resumed(method, seconds, stop, steps):
    """Train to `stop`, on to the end, and once more from copies of the states; both ends, owners and what was said."""
    run = Run(method, seconds).walk(range(stop))
    files = []
    for part in (run.model, run.optimizer, run.engine):
        files.append(io.BytesIO())
        torch.save(part.state_dict(), files[-1])
        files[-1].seek(0)
    held = copy.deepcopy(run.engine.parts.balance.state_dict())
    run.walk(range(stop, steps))
    again = Run(method, seconds)
    for part, file in zip((again.model, again.optimizer, again.engine), files, strict=True):
        part.load_state_dict(torch.load(file, weights_only=True))
    loaded, owners = again.engine.parts.balance.state_dict(), [*again.engine.parts.units.schedule.owner]
    again.walk(range(stop, steps))
    ends = [(each.weights, [*each.engine.parts.units.schedule.owner], each.told) for each in (run, again)]
    for each in (run, again):
        each.engine.detach()
    return ends, held, loaded, owners


def equal(rank, step):
    """All ranks take as long."""
    return 1.0


def half(rank, step):
    """The last rank of two takes twice as long."""
    return 2.0 if rank == 1 else 1.0


def noisy(rank, step):
    """Equal ranks, and noise of 10 %."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return 1.0 + 0.1 * torch.randn((), generator=generator).item()


def later(rank, step):
    """Rank 1 becomes slow, and later is as before."""
    return 3.0 if rank == 1 and 60 < step <= 160 else 1.0
