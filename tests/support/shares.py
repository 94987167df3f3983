"""What the ranks of the pool run where curvature is with its owners: trainings that go on from files, and bytes."""

import copy
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from lightning_so import SOAP, ConfigError, Memory, StateError, attach
from lightning_so.core.checkpoint import checkpoint, plain_moments
from lightning_so.core.trust.memory import curvature_bytes
from lightning_so.core.trust.traffic import traffic
from tests.support import noted
from tests.support.problems import Net, batch
from tests.support.ranks import walk


class Ended(NamedTuple):
    """Where a training has ended, on one rank."""

    #: Final weights by name.
    weights: dict[str, torch.Tensor]
    #: States of the model, the optimizer and the engine.
    files: list[dict[str, Any]]
    #: The optimizer's own moments, as it has them.
    moments: list[torch.Tensor]


def train(method, base, arguments, steps, *, memory=None, kind="full", given=None) -> Ended:
    """Train Net in float64 from given files or the start, and write files, in a world of any size."""
    several = dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    torch.manual_seed(0)
    model = Net(torch.float64)
    wrapped = DDP(model) if several else model
    optimizer = base(model.parameters(), **arguments)
    engine = attach(model, optimizer, method, memory=memory)
    if given:
        # Copied: tensors that came through a pipe share their memory with the other ranks.
        of_model, of_optimizer, of_engine = copy.deepcopy(given)
        model.load_state_dict(of_model)
        optimizer.load_state_dict(of_optimizer)
        checkpoint.read(engine.parts, of_engine)
    walk(wrapped, optimizer, engine, steps, rank, ranks)
    live = [v.clone() for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    with engine.plain():
        files = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    files.append(checkpoint.write(engine.parts, kind))
    noted.ran([engine], "ddp" if several else "one", noted.LOOP, resume=given is not None)
    engine.detach()
    return Ended({name: p.detach().clone() for name, p in model.named_parameters()}, files, live)


def refused(share, event):
    """What each rank is told by one thing that a user may do in mid-training."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    wrapped, engine = DDP(model), attach(model, optimizer, SOAP(start=2, period=2), memory=Memory(share=share))
    try:
        for step in range(8):
            x, y = batch(step)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(wrapped(x), y).backward()
            optimizer.step()
        return event(optimizer, engine)
    except (ConfigError, StateError) as error:
        return str(error)
    finally:
        engine.detach()


def ask(optimizer, engine):
    """Ask for the state of the optimizer."""
    return "\n".join(optimizer.state_dict()["state"][0])


def ask_alone(optimizer, engine):
    """What a file of one rank has of moments, which asks no other, and whether the live ones are as before."""
    before = copy.deepcopy([state["exp_avg_sq"] for state in optimizer.state.values()])
    with plain_moments.plainly(engine.parts, alone=True):
        inside = [state["exp_avg"].abs().max() for state in optimizer.state.values()]
    after = [state["exp_avg_sq"] for state in optimizer.state.values()]
    return [float(size) for size in inside], all(map(torch.equal, before, after))


def leave(optimizer, engine):
    """What going on without the engine would change."""
    return plain_moments.leaving(engine.parts)


def grown(share, steps=16):
    """Train while a parameter joins the optimizer in mid-training."""
    several = dist.is_initialized() and share is not None
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    torch.manual_seed(0)
    model = Net(torch.float64)
    wrapped = DDP(model) if several else model
    params = [p for name, p in model.named_parameters() if name != "tall.weight"]
    optimizer = torch.optim.AdamW(params, lr=3e-3)
    engine = attach(model, optimizer, SOAP(start=3, period=2), memory=None if share is None else Memory(share=share))
    for step in range(steps):
        if step == 8:
            optimizer.add_param_group({"params": [model.tall.weight]})
        x, y = batch(step, torch.float64)
        model.zero_grad()
        torch.nn.functional.cross_entropy(wrapped(x[rank::ranks]), y[rank::ranks]).backward()
        optimizer.step()
    engine.detach()
    return {name: p.detach().clone() for name, p in model.named_parameters()}, engine.report.rotated


def held(method, base, arguments, share) -> tuple[int, str]:
    """Bytes of curvature that this rank has after some steps, and the plan."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(8)))
    wrapped = DDP(model) if dist.is_initialized() else model
    optimizer = base(model.parameters(), **arguments)
    engine = attach(model, optimizer, method, memory=Memory(share=share), route={"hidden": ["*"]})
    for step in range(6):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        wrapped(x).square().mean().backward()
        optimizer.step()
    found = curvature_bytes(engine.parts.units), str(engine.plan)
    engine.detach()
    return found


class Deep(NamedTuple):
    """What came of a training of `Deep`, on one rank."""

    held: int
    predicted: float


def deep(method, base, arguments, share) -> Deep:
    """Bytes of curvature that this rank has after some steps, and those that it was to send at a step."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))
    model = nn.ModuleDict({"layers": layers})
    wrapped, optimizer = DDP(layers), base(model.parameters(), **arguments)
    engine = attach(model, optimizer, method, memory=Memory(share=share))
    for step in range(6):
        optimizer.zero_grad()
        wrapped(torch.randn(8, 64, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
    parts = engine.parts
    found = Deep(curvature_bytes(parts.units), traffic(parts.units, parts.host, parts.matrices))
    engine.detach()
    return found
