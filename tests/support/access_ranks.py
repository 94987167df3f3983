"""What the ranks of the pool run to find out where numbers are: a small model, sharded by each framework."""

import logging
import os
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import ShardingStrategy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from lightning_so.comm.choose import access_of
from lightning_so.errors import ConfigError
from tests.support.peers import PEERS

STEPS = 3
#: Base optimizer and the hyper-parameters of weights and of biases.
BASES = {
    "SGD": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}, {"lr": 0.02, "weight_decay": 0.0}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1}, {"lr": 0.02, "weight_decay": 0.0}),
}


class Odd(nn.Module):
    """Layers whose rows no number of ranks divides; the last has fewer than ranks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(5, 3), nn.Linear(3, 7), nn.Linear(7, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def batch(number):
    """A micro-batch of eight samples, of all ranks."""
    generator = torch.Generator().manual_seed(100 + number)
    x = torch.randn(8, 5, generator=generator)
    return x, x.sin().sum(1, keepdim=True)


def optimizer_of(model, base, groups):
    """The base optimizer, with one group or weights and biases apart."""
    cls, weights, biases = BASES[base]
    params = list(model.parameters())
    if groups == 1:
        return cls(params, **weights)
    # Out of the model's order, so that places in a group are not those in the model.
    return cls([{"params": params[1::2], **biases}, {"params": params[0::2]}], **weights)


def twist(tensor, span, numel, number):
    """Change a piece by what depends on where its numbers are in the whole."""
    flat = tensor.view(-1)
    ramp = torch.arange(*span, dtype=torch.float32) / numel
    flat.mul_(1 + 0.1 * (number % 3) + 0.2 * ramp.to(flat.dtype))


def moments(state):
    """The tensors of a state but its step."""
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor) and value.ndim}


def copied(tensor):
    return None if tensor is None else tensor.detach().clone()


def look(access, params, optimizer):
    """What the access says: for each parameter its shape, span, and copies of the pieces."""
    return [
        SimpleNamespace(
            shape=tuple(access.shape(p)),
            span=access.span(p),
            weight=copied(access.weight(p)),
            grad=copied(access.grad(p)),
            state={key: copied(value) for key, value in moments(access.state(optimizer, p)).items()},
        )
        for p in params
    ]


def turn(access, params, optimizer):
    """Twist gradients, weights and moments through the access."""
    with torch.no_grad():
        for number, p in enumerate(params):
            span, numel = access.span(p), access.shape(p).numel()
            pieces = [access.weight(p), access.grad(p), *moments(access.state(optimizer, p)).values()]
            for piece in pieces:
                twist(piece, span, numel, number)


# ---------------------------------------------------------------- one process


def alone(base, groups, many, clip=None, after=False):
    """The same training in one process, on the whole batches and whole parameters; the weights at the end."""
    model = Odd()
    optimizer = optimizer_of(model, base, groups)
    params, access = list(model.parameters()), access_of(model.parameters())
    for step in range(STEPS):
        for micro in range(many):
            x, y = batch(step * many + micro)
            (nn.functional.mse_loss(model(x), y) / many).backward()
        turn(access, params, optimizer)
        if clip:
            nn.utils.clip_grad_norm_(params, clip)
        optimizer.step()
        if after:
            finish(access, params)
        optimizer.zero_grad()
    return [p.detach() for p in params]


def finish(access, params):
    """What a method does after the base's step: the weights change by their position and the gradient."""
    with torch.no_grad():
        for p in params:
            piece = access.weight(p).view(-1)
            piece.add_(torch.arange(*access.span(p)) / 100).add_(access.grad(p).reshape(-1), alpha=0.1)


# ---------------------------------------------------------------- FSDP


def mesh(sharded):
    """A mesh of all ranks; with replicas of halves."""
    ranks = dist.get_world_size()
    if sharded == "all":
        return init_device_mesh("cpu", (ranks,), mesh_dim_names=("shard",))
    return init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("replicate", "shard"))


def whole(tensor):
    return tensor.full_tensor().detach().clone()


def fsdp2(base, groups, many, sharded="all"):
    """FSDP2, by layer and around them; what was found, the weights at the end, and how many ranks share a parameter."""
    model = Odd()
    for module in (model.first, model.second, model):
        fully_shard(module, mesh=mesh(sharded))
    optimizer = optimizer_of(model, base, groups)

    def full():
        return [
            # Copied: where one rank has it all, the full tensor is the local one.
            (whole(p), whole(p.grad), {key: whole(value) for key, value in moments(optimizer.state[p]).items()})
            for p in model.parameters()
        ]

    found = trained(model, optimizer, many, full)
    return found, [whole(p) for p in model.parameters()]


STRATEGIES = {
    "FULL_SHARD": (ShardingStrategy.FULL_SHARD, None),
    "SHARD_GRAD_OP": (ShardingStrategy.SHARD_GRAD_OP, None),
    "NO_SHARD": (ShardingStrategy.NO_SHARD, None),
    "HYBRID_SHARD": (ShardingStrategy.HYBRID_SHARD, "some"),
}


def fsdp1(base, groups, many, strategy="FULL_SHARD"):
    """FSDP1, one flat parameter for a layer and one for the others."""
    kind, sharded = STRATEGIES[strategy]
    where = {"device_id": torch.device("cpu"), "use_orig_params": True, "sharding_strategy": kind}
    if sharded:
        where["device_mesh"] = mesh(sharded)
    model = Odd()
    model.first = FSDP(model.first, **where)
    model = FSDP(model, **where)
    optimizer = optimizer_of(model, base, groups)

    def full():
        with FSDP.summon_full_params(model, with_grads=True):
            found = [(p.detach().clone(), p.grad.clone()) for p in model.parameters()]
        names = [name.replace("_fsdp_wrapped_module.", "") for name, _ in model.named_parameters()]
        states = FSDP.full_optim_state_dict(model, optimizer, rank0_only=False)["state"]
        # The last key alone: on CPU torch 2.13 gathers all into one buffer, the others' tensors too.
        last = [list(moments(states.get(name, {})).items())[-1:] for name in names]
        return [(*pair, {key: copied(t) for key, t in items}) for pair, items in zip(found, last, strict=True)]

    found = trained(model, optimizer, many, full)
    with FSDP.summon_full_params(model):
        return found, [p.detach().clone() for p in model.parameters()]


def trained(model, optimizer, many, full):
    """Train, and look before each step: by the access, and by the framework's own getters."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    params, found = list(model.parameters()), []
    access = access_of(params, model)
    for step in range(STEPS):
        for micro in range(many):
            x, y = batch(step * many + micro)
            (nn.functional.mse_loss(model(x[rank::ranks]), y[rank::ranks]) / many).backward()
        found.append((look(access, params, optimizer), full()))
        turn(access, params, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        assert all(access.grad(p) is None for p in params if p.numel())
    return found


# ---------------------------------------------------------------- DeepSpeed


def deepspeed():
    """The package, set up on the pool's processes, with nothing compiled."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["LOCAL_RANK"] = str(dist.get_rank())
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    import deepspeed
    import deepspeed.ops

    for name in list(deepspeed.ops.__compatible_ops__):
        deepspeed.ops.__compatible_ops__[name] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    return deepspeed


def engine_of(stage, base, groups, many, model=None, zero=None, **config):
    """DeepSpeed's engine for the model, and the optimizer that it was given."""
    model = model or Odd()
    optimizer = optimizer_of(model, base, groups)
    options = {"stage": stage, "overlap_comm": False, "reduce_scatter": False, **(zero or {})}
    config = {
        "train_micro_batch_size_per_gpu": 8 // dist.get_world_size(),
        "gradient_accumulation_steps": many,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # Left out, it is 1.
        "zero_optimization": options,
        **config,
    }
    engine, *_ = deepspeed().initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    return engine, optimizer


def zero(stage, base, groups, many, after=False, full=True, options=None, scale=None, **config):
    """Train with DeepSpeed; `after` finishes each group in the hook after the client's step."""
    engine, _ = engine_of(stage, base, groups, many, zero=options, **config)
    if scale:
        engine.optimizer.override_loss_scale(scale)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    from deepspeed import utils

    params, found, calls = list(engine.module.parameters()), [], []
    access = access_of(params, engine.module, engine)
    if after:

        def hook(*_):
            finish(access, access.calls()[len(calls)])
            calls.append([group["lr"] for group in access.groups()])

        access.client.register_step_post_hook(hook)

    def getters():
        keys = {"SGD": ["momentum_buffer"], "AdamW": ["exp_avg", "exp_avg_sq"]}[base] if found and groups == 1 else []
        return [
            (
                utils.safe_get_full_fp32_param(p).clone(),
                utils.safe_get_full_grad(p).clone(),
                {key: utils.safe_get_full_optimizer_state(p, key).clone() for key in keys},
            )
            for p in params
        ]

    for step in range(STEPS):
        for micro in range(many):
            x, y = (part[rank::ranks] for part in batch(step * many + micro))
            dtype = next(engine.module.parameters()).dtype
            loss = nn.functional.mse_loss(engine(x.to(dtype)).float(), y)
            engine.backward(loss)
            if micro + 1 < many:
                assert all(access.grad(p) is None for p in params)
                engine.step()
        found.append((look(access, params, engine.optimizer), getters() if full else None))
        turn(access, params, engine.optimizer)
        calls.clear()
        engine.step()
        assert all(access.grad(p) is None for p in params)
    with deepspeed().zero.GatheredParameters(params):
        ends = [p.detach().clone() for p in params]
    summary = {
        "calls": list(calls),
        "groups": [[_index(params, p) for p in group] for group in access.calls()],
        "scale": float(access.engine.optimizer.loss_scale),
        "users": [([_index(params, p) for p in g["params"]], g["lr"]) for g in access.groups()],
    }
    engine.destroy()
    return found, ends, summary


def unstepped(stage):
    """What is asked of an engine's parameters without the engine, of another parameter, and while nothing is there."""
    engine, _ = engine_of(stage, "AdamW", 1, 1)
    params = list(engine.module.parameters())
    access, said = access_of(params, engine=engine), []
    assert all(access.grad(p) is None and access.state(engine.optimizer, p) == {} for p in params)
    for ask in (lambda: access_of(params), lambda: access.span(nn.Parameter(torch.ones(2, 3)))):
        try:
            said.append(ask())
        except ConfigError as error:
            said.append(str(error))
    engine.destroy()
    return said


def whole_engine():
    """Stage 0 in fp32 has whole parameters; what is said of other engines."""
    engine, _ = engine_of(0, "SGD", 1, 1)
    found = [type(access_of(engine.module.parameters(), engine=engine)).__name__]
    engine.destroy()
    BASES["Adagrad"] = (torch.optim.Adagrad, {"lr": 0.1}, {"lr": 0.2})
    half = {"bf16": {"enabled": True}}
    for stage, base, config in (
        (0, "SGD", half),
        (1, "SGD", {**half, "data_types": {"grad_accum_dtype": "fp32"}}),
        (2, "Adagrad", {}),
    ):
        engine, _ = engine_of(stage, base, 2, 1, **config)
        try:
            found.append(type(access_of(engine.module.parameters(), engine=engine)).__name__)
        except ConfigError as error:
            found.append(str(error))
    return found


# ---------------------------------------------------------------- placements


def placements():
    """What is said of DTensors placed in several ways, and the spans of those that are supported."""
    line, square = mesh("all"), mesh("some")
    ranks = dist.get_world_size()
    W = torch.arange(10.0 * ranks).view(2 * ranks, 5)

    def placed(on, *how):
        return nn.Parameter(distribute_tensor(W, on, how))

    cases = {
        "rows": placed(line, Shard(0)),
        "replicas": placed(square, Replicate(), Shard(0)),
        "whole": placed(square, Replicate(), Replicate()),
        "alone": placed(line, Replicate()),
        "plain": nn.Parameter(W),
        "columns": placed(line, Shard(1)),
        "twice": placed(square, Shard(0), Shard(0)),
        "tensor parallel": placed(square, Shard(0), Replicate()),
        # Rows, as `fully_shard` has them, of a layer whose ranks see the same batch.
        "column parallel": placed(init_device_mesh("cpu", (ranks,), mesh_dim_names=("tensor_parallel",)), Shard(0)),
        "strided": DTensor.from_local(
            W[:2], line, [_StridedShard(0, split_factor=2)], run_check=False, shape=W.shape, stride=W.stride()
        ),
        "partial": DTensor.from_local(W, line, [Partial()]),
    }
    access, found = access_of(cases.values()), {}
    for name, param in cases.items():
        try:
            start, stop = access.span(param)
            found[name] = torch.equal(access.weight(param).reshape(-1), W.view(-1)[start:stop]) and (start, stop)
        except ConfigError as error:
            found[name] = str(error)
    return found


def flat_refusals():
    """What is said of FSDP1 that cannot be, or is not, known."""
    where, said = {"device_id": torch.device("cpu")}, []
    flat = FSDP(Odd(), use_orig_params=False, **where)
    wrapped, plain = FSDP(Odd(), use_orig_params=True, **where), Odd()
    parallel = FSDP(Odd(), use_orig_params=True, **where)
    line = nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh("all"), [Shard(0)]))
    for params, model in (
        (flat.parameters(), flat),
        (flat.parameters(), None),
        (plain.parameters(), flat),
        ([*parallel.parameters(), line], parallel),
    ):
        try:
            said.append(type(access_of(params, model)).__name__)
        except ConfigError as error:
            said.append(str(error))
    # The wrapper around a model that holds the parameters, whatever it is in.
    said.append(type(access_of(wrapped.parameters(), nn.Sequential(wrapped))).__name__)
    return said


def frozen():
    """Which parameters have a gradient in a model of FSDP1 whose biases are frozen."""
    model = Odd()
    for layer in (model.first, model.second, model.last):
        layer.bias.requires_grad = False
    model = FSDP(model, use_orig_params=True, device_id=torch.device("cpu"))
    model(batch(0)[0]).sum().backward()
    access = access_of(model.parameters(), model)
    return [access.grad(p) is not None for p in model.parameters()]


def _index(params, param):
    return next(number for number, p in enumerate(params) if p is param)
