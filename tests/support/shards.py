"""What the ranks of the pool run on sharded models: a plain loop under FSDP2, on shards of one global batch."""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_so import ConfigError, attach
from lightning_so.contract.memory import held
from lightning_so.core.trust.traffic import traffic
from tests.support import noted


class Small(nn.Module):
    """An embedding, a convolution, a norm and matrices whose rows do not divide, one with fewer than four ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 5, 3, padding=1)
        self.norm = nn.LayerNorm(5)
        self.up = nn.Linear(5, 9)
        self.narrow = nn.Linear(9, 3, bias=False)
        self.head = nn.Linear(3, 11)

    def forward(self, x):
        x = self.conv(self.tokens(x).mT).mT
        # Copied: FSDP2 warns of outputs that are views.
        return self.head(torch.tanh(self.narrow(torch.tanh(self.up(self.norm(x)))))).clone()


class Equal(nn.Module):
    """Eight matrices of one shape, all of them hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.more = nn.ModuleList([nn.Linear(16, 16, bias=False) for _ in range(6)])

    def forward(self, x):
        x = nn.functional.one_hot(x, 16).to(self.up.weight.dtype)
        for layer in (self.conv, self.up, *self.more):
            x = x + torch.tanh(layer(x))
        return x


class Trained(NamedTuple):
    """What came of a training, on one rank."""

    #: Whole final weights by name.
    weights: dict[str, torch.Tensor]
    #: The engine's report.
    report: Any
    #: Bytes that its exchanges sent, by step.
    sent: list[int]
    #: Of these, bytes of pieces that travelled to their owners and back, without those of moments.
    pieces: list[int]
    #: Predicted bytes per step, and those of cold blocks.
    predicted: tuple[float, float]
    #: The plan, as text.
    plan: str
    #: The largest change of this rank's pieces, by step.
    changes: list[float]
    #: Bytes of curvature that it has at the end, between two steps.
    curvature: int
    #: What the ranks exchanged, in order: the call, and of those that are alike everywhere the size.
    calls: list[tuple[str, int]]


def batch(step: int):
    """A fixed stream of batches of eight."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 11, (8, 7), generator=generator), torch.randint(0, 11, (8, 7), generator=generator)


def loss_of(model, step: int, rank: int, ranks: int):
    x, y = batch(step)
    return nn.functional.cross_entropy(model(x[rank::ranks]).flatten(0, 1), y[rank::ranks].flatten())


def piece(tensor):
    """What this rank has of a parameter or gradient."""
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()


def made(model=Small, dtype=torch.float64, mesh=None, frozen=""):
    """A model, sharded where there are several ranks; this rank and their number."""
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    torch.manual_seed(0)
    model = model().to(dtype)
    if frozen:
        model.get_parameter(frozen).requires_grad_(False)
    if ranks > 1:
        names = ("replicate", "shard") if mesh else ("shard",)
        mesh = init_device_mesh("cpu", mesh or (ranks,), mesh_dim_names=names)
        for layer in (model.conv, model.up, model):
            fully_shard(layer, mesh=mesh)
    return model, rank, ranks


def train(
    method,
    base,
    arguments,
    steps=16,
    *,
    accumulate=1,
    clip=None,
    groups=False,
    later="",
    sharding="exact",
    event: Callable[..., Any] | None = None,
    **how,
) -> Trained:
    """Train a model in a plain loop.

    Args:
        method: The method.
        base: The base optimizer's class.
        arguments: Its arguments.
        steps: Steps of it.
        accumulate: Micro-batches a step.
        clip: The norm to clip at.
        groups: Whether some parameters are in a group of their own.
        later: A parameter that joins the optimizer before step 10.
        sharding: See `attach`.
        event: Called before each step, with (step, rank, ranks, model, optimizer); may give a context to step in.
        how: See `made`.
    """
    model, rank, ranks = made(**how)
    params = [p for name, p in model.named_parameters() if name != later]
    if groups:
        params = [{"params": params[:4]}, {"params": params[4:], "weight_decay": 0.0, "lr": 1e-3}]
    optimizer = base(params, **arguments)
    with ExitStack() as stack:
        calls = stack.enter_context(listening())
        engine = attach(model, optimizer, method, sharding=sharding)
        # After blocks were added the layout is another.
        pieces = counted(engine)
        sent, changes = [], []
        for step in range(steps):
            if later and step == 10:
                optimizer.add_param_group({"params": [model.get_parameter(later)]})
            for part in range(accumulate):
                loss = loss_of(model, step * accumulate + part, rank, ranks) / accumulate
                engine.before_backward(loss)
                loss.backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            before = [piece(p).clone() for p in model.parameters()]
            pieces.append(0)
            with (event and event(step, rank, ranks, model, optimizer)) or ExitStack():
                optimizer.step()
            optimizer.zero_grad()
            sent.append(engine.host.world.sent)
            moved = [(piece(p) - old).abs().max() for p, old in zip(model.parameters(), before) if old.numel()]
            changes.append(float(max(moved)))
        of = engine.parts.units, engine.host, engine.parts.matrices
        predicted = traffic(*of), traffic(*of, warm=False)
        report, plan = engine.report, str(engine.plan)
        kept = [tensor for stack in engine.stacks for tensor in held(stack.stats) if not tensor.is_meta]
        strategy = "one" if ranks == 1 else "hsdp" if how.get("mesh") else "fsdp2"
        noted.ran([engine], strategy, noted.LOOP, accumulation=accumulate > 1, clipping=clip)
        engine.detach()
    weights = {name: (p.full_tensor() if hasattr(p, "full_tensor") else p) for name, p in model.named_parameters()}
    weights = {name: weight.detach().clone() for name, weight in weights.items()}
    curvature = sum(tensor.nbytes for tensor in kept)
    return Trained(weights, report, sent, pieces, predicted, plan, changes, curvature, calls)


def counted(engine) -> list[int]:
    """Bytes of pieces that travel to their owners and back, added to the last of a list; moments do not count."""
    pieces, moving, comm, move = [], [], engine.host.team, engine.parts.matrices.change_moments

    def counts(exchange):
        def call(*arguments):
            before = comm.sent
            found = exchange(*arguments)
            if not moving and pieces:
                pieces[-1] += comm.sent - before
            return found

        return call

    def moves(jobs):
        moving.append(1)
        move(jobs)
        moving.pop()

    if engine.parts.matrices.sharded:
        comm.to_owners, comm.from_owners, engine.parts.matrices.change_moments = (
            counts(comm.to_owners),
            counts(comm.from_owners),
            moves,
        )
    return pieces


@contextmanager
def listening():
    """Lists the exchanges that this rank takes part in."""
    calls = []

    def told(name, call):
        def heard(*arguments, **named):
            tensor = (
                arguments[name == "all_gather"] if name.startswith(("all_reduce", "all_gather", "reduce")) else None
            )
            calls.append((name, 0 if tensor is None else tensor.numel()))
            return call(*arguments, **named)

        return heard

    with ExitStack() as stack:
        for name in ("all_reduce", "all_gather", "reduce", "all_to_all_single", "new_group", "broadcast", "barrier"):
            stack.enter_context(mock.patch.object(dist, name, told(name, getattr(dist, name))))
        yield calls


# ---------------------------------------------------------------- events


def poison(step, rank, ranks, model, optimizer):
    """At step 12 the second rank, or the only one, has a gradient that is not finite."""
    if step == 12 and rank == min(1, ranks - 1):
        piece(model.up.weight.grad).view(-1)[0] = float("nan")


def drop(step, rank, ranks, model, optimizer):
    """At step 12 the second rank, or the only one, has no gradient of a matrix."""
    if step == 12 and rank == min(1, ranks - 1):
        model.up.weight.grad = None


def still(step, rank, ranks, model, optimizer):
    """From step 7 to 11 biases have no gradient."""
    if 7 <= step < 12:
        for layer in (model.conv, model.norm, model.up):
            layer.bias.grad = None


def alone(step, rank, ranks, model, optimizer):
    """From step 7 to 11 biases have gradients, and weights have none."""
    if 7 <= step < 12:
        for layer in (model.conv, model.norm, model.up):
            layer.weight.grad = None


@contextmanager
def broken(optimizer):
    # What the base calls first, after the parameters were hidden.
    with mock.patch.object(optimizer, "_init_group", side_effect=KeyError), pytest.raises(KeyError):
        yield


def breaks(step, rank, ranks, model, optimizer):
    """At step 12 the base raises within its step, and the training goes on."""
    return broken(optimizer) if step == 12 else None


def failing(step, rank, ranks, model, optimizer):
    """From step 8 on the owners' solves of one side fail, until step 20."""
    method = optimizer._lightning_so.parts.methods[0]
    solve, solve_afresh = type(method).solve, type(method).solve_afresh

    def fails(self, asked):
        solved = solve(self, asked)
        return replace(solved, good=solved.good & torch.tensor([bool(unit.side) for _, unit in asked]))

    def fails_afresh(self, stats, unit):
        result = solve_afresh(self, stats, unit)
        return result if unit.side else replace(result, ok=False)

    if 8 <= step < 20:
        return mock.patch.multiple(type(method), solve=fails, solve_afresh=fails_afresh)
    return None


# ---------------------------------------------------------------- other functions of ranks


def refused(method, base, arguments, **checks) -> str:
    """What `attach` says of a check."""
    model, *_ = made()
    try:
        attach(model, base(model.parameters(), **arguments), method, **checks)
    except ConfigError as error:
        return str(error)
    return "no error"
