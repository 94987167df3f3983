"""What the ranks of the pool run: a plain loop with DDP, on shards of one global batch."""

import copy
import io
import os
from itertools import pairwise

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel as DDP

from lightning_so import SecondOrder, TrustError, attach, curvature
from lightning_so.comm.access.fsdp2 import DTensorAccess
from lightning_so.comm.pieces import Pieces
from lightning_so.comm.sharded import Sharded
from lightning_so.core.trust.traffic import traffic
from lightning_so.probe.parameters import space_of
from tests.support import noted
from tests.support.problems import Net, batch


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
    hook=None,
    reduction="mean",
    set_to_none=True,
    lag=0,
    **options,
):
    """Train Net; the ranks see strided shards of the global batch. Gives weights, report, bytes sent and predicted."""
    several = dist.is_initialized() and shard
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    torch.manual_seed(0)
    model = Net(dtype)
    wrapped = DDP(model) if several else model
    if hook and several:
        wrapped.register_comm_hook(None, fp16_compress_hook if hook == "fp16" else allreduce_hook)
    if reduction == "sum":
        # A sum over 8 samples is 8 means; DDP averages the sums of its ranks.
        arguments = {**arguments, "lr": arguments["lr"] * ranks / 8}
    optimizer = base(model.parameters(), **arguments)
    engine = attach(model, optimizer, method, lag=lag, **options)
    sent = []
    for step in range(steps * accumulate):
        x, y = batch(step, dtype)
        f = wrapped(x[rank::ranks])
        loss = torch.nn.functional.cross_entropy(f, y[rank::ranks], reduction=reduction) / accumulate
        engine.before_backward(loss)
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
        optimizer.zero_grad(set_to_none)
        sent.append(engine.host.team.sent)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    report, predicted = engine.report, traffic(engine.parts.units, engine.host, engine.parts.matrices)
    strategy = "ddp" if several else "one"
    noted.ran([engine], strategy, noted.LOOP, accumulation=accumulate > 1, clipping=clip)
    engine.detach()
    return weights, report, sent, predicted


def resumed(method, base, arguments, steps, stop, lag=0):
    """Train to `stop`, then once more in a new model from copies of the states; gives the weights of both ends."""
    rank, ranks = dist.get_rank(), dist.get_world_size()

    def make():
        torch.manual_seed(0)
        model = Net()
        # Plain DDP packs its buckets anew after its first iteration: a new one sums over more than two ranks in another
        # order, with plain AdamW too. One that looks for unused parameters keeps its buckets.
        wrapped = DDP(model, find_unused_parameters=ranks > 2)
        optimizer = base(model.parameters(), **arguments)
        return model, wrapped, optimizer, attach(model, optimizer, method, lag=lag)

    def walk(engine, wrapped, optimizer, numbers):
        for step in numbers:
            x, y = batch(step)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(wrapped(x[rank::ranks]), y[rank::ranks])
            engine.before_backward(loss)
            loss.backward()
            optimizer.step()

    model, wrapped, optimizer, engine = make()
    walk(engine, wrapped, optimizer, range(stop))
    files = [io.BytesIO() for _ in range(3)]
    for file, part in zip(files, (model, optimizer, engine), strict=True):
        torch.save(part.state_dict(), file)
        file.seek(0)
    walk(engine, wrapped, optimizer, range(stop, steps))
    again, wrapped, optimizer, other = make()
    for file, part in zip(files, (again, optimizer, other), strict=True):
        part.load_state_dict(torch.load(file, weights_only=True))
    walk(other, wrapped, optimizer, range(stop, steps))
    ends = [{name: p.detach().clone() for name, p in m.named_parameters()} for m in (model, again)]
    noted.ran([other], "ddp", noted.LOOP, resume=True)
    engine.detach()
    other.detach()
    return ends


def states(method, base, arguments, steps, given=None, dtype=torch.float64):
    """Train some steps, from given states or the start, in a world of any size; the states at the end."""
    several = dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    torch.manual_seed(0)
    model = Net(dtype)
    wrapped = DDP(model) if several else model
    optimizer = base(model.parameters(), **arguments)
    engine = attach(model, optimizer, method)
    if given:
        # Copied: tensors that came through a pipe share their memory with the other ranks.
        for part, state in zip((model, optimizer, engine), copy.deepcopy(given), strict=True):
            part.load_state_dict(state)
    for step in steps:
        x, y = batch(step, dtype)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(wrapped(x[rank::ranks]), y[rank::ranks]).backward()
        optimizer.step()
    ends = [copy.deepcopy(part.state_dict()) for part in (model, optimizer, engine)]
    noted.ran([engine], "ddp" if several else "one", noted.LOOP, resume=given is not None)
    engine.detach()
    return ends


def walk(wrapped, optimizer, engine, steps, rank, ranks):
    """Make some steps in float64, on this rank's part of each global batch, with losses that the engine is shown."""
    for step in steps:
        x, y = batch(step, torch.float64)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(wrapped(x[rank::ranks]), y[rank::ranks])
        engine.before_backward(loss)
        loss.backward()
        optimizer.step()


def observed(method, base, arguments, steps, how):
    """Train, then what every rank has: `curvature`, or the factors as the callback leaves them when training ends."""
    several = dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    torch.manual_seed(0)
    model = Net(torch.float64)
    wrapped, optimizer = DDP(model) if several else model, base(model.parameters(), **arguments)
    engine = attach(model, optimizer, method)
    walk(wrapped, optimizer, engine, range(steps), rank, ranks)
    if how == "curvature":
        found = {name: (c.inputs, c.outputs, *(c.bases or ()), c.moments) for name, c in curvature(engine).items()}
    else:
        callback = SecondOrder(method)
        callback.engines = [engine]
        callback.on_train_end(None, model)
        found = {stack.blocks[0].name: tuple(F for _, F in method.factors(stack.stats)) for stack in engine.stacks}
    engine.detach()
    return found


def diverges(method, base, arguments, compare_every):
    """Rank 1 changes one weight after the fifth step; what each rank is told, and when."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = Net()
    optimizer = base(model.parameters(), **arguments)
    wrapped = DDP(model)
    engine = attach(model, optimizer, method, compare_every=compare_every)
    try:
        for step in range(12):
            x, y = batch(step)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(wrapped(x[rank::ranks]), y[rank::ranks]).backward()
            optimizer.step()
            if step == 5 and rank == 1:
                with torch.no_grad():
                    model.wide.bias[3] += 1e-6
    except TrustError as error:
        return str(error)
    finally:
        engine.detach()
    return "no error"


def dies(method, base, arguments):
    """Rank 1 leaves without a word; the others are told so by an error."""
    if dist.get_rank() == 1:
        os._exit(1)
    try:
        train(method, base, arguments, 4)
    except (RuntimeError, dist.DistError) as error:
        return type(error).__name__
    return "no error"


def exchanged(edges, owners, seed, dtype=torch.float32):
    """Whole random tensors, cut by edges: what owners get, what comes back doubled, and the bytes that were sent."""
    comm, rank = Sharded(), dist.get_rank()
    generator = torch.Generator().manual_seed(seed)
    whole = [torch.randn(cut[-1], generator=generator, dtype=torch.float64).to(dtype) for cut in edges]
    pieces = [Pieces(tuple(pairwise(cut)), owner) for cut, owner in zip(edges, owners, strict=True)]
    mine = [p.of(t, rank).clone() for t, p in zip(whole, pieces, strict=True)]
    got = comm.to_owners(mine, pieces)
    first = comm.sent
    comm.from_owners([None if t is None else 2 * t for t in got], mine, pieces)
    sent = (first, comm.sent - first)
    comm.close()
    return whole, got, mine, sent


def products(sharded):
    """Gram matrix of three random vectors over four parameters, some of them DTensors, and the dense one."""
    comm, mesh = Sharded(), init_device_mesh("cpu", (dist.get_world_size(),))
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (7, 1, 12, 5)]
    params = [torch.nn.Parameter(distribute_tensor(p, mesh, [Shard(0)])) if s else p for p, s in zip(params, sharded)]
    access = DTensorAccess()
    space = space_of([(f"p{number}", p) for number, p in enumerate(params)], access, comm)
    whole = torch.stack([torch.randn(25, generator=torch.Generator().manual_seed(number)) for number in range(3)])
    spans = [access.span(p) for p in params]
    parts = zip(whole.split([7, 1, 12, 5], 1), spans, strict=True)
    found = space.gram(*[torch.cat([part[:, first:last] for part, (first, last) in parts], 1)] * 2)
    comm.close()
    return found, space.dimension, whole.double() @ whole.double().mT
