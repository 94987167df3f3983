"""Real Trainers under every strategy, on ranks that run already: `world.run(train, "fsdp2", None, ADAMW)`."""

import logging
import os
import sys
import warnings
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import ClusterEnvironment
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins import FSDPPrecision, MixedPrecision
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import wrap
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lightning_so import SecondOrder
from lightning_so.comm.wrappers import clean
from lightning_so.strategies.ddp import SecondOrderDDPStrategy
from lightning_so.strategies.fsdp import SecondOrderFSDPStrategy
from tests.support import noted
from tests.support.peers import PEERS
from tests.support.transformer import BATCH, Block, Transformer, batch

#: "one" is one process, wherever it runs; the "hsdp" ones have two replicas of a model that is cut over half of the
#: ranks; in "fsdp1 by hand" the module wraps its parts.
STRATEGIES = (
    "one",
    "ddp",
    "ddp_so",
    "fsdp2",
    "hsdp",
    "fsdp1",
    "hsdp1",
    "fsdp1 by hand",
    "zero0",
    "zero1",
    "zero2",
    "zero3",
)
FSDP1 = ("fsdp1", "hsdp1", "fsdp1 by hand")


class Trained(NamedTuple):
    """What came of a training, on one rank."""

    #: Whole final weights by clean name, on the CPU.
    weights: dict[str, torch.Tensor]
    #: This rank's loss of every micro-batch.
    losses: list[float]
    #: How many numbers of every weight this rank holds between two steps.
    held: dict[str, int]
    #: How many numbers of the optimizer's state.
    state: int
    #: Bytes that SecondOrder's exchanges have sent by the end of every step; empty without a method.
    sent: list[int]
    #: SecondOrder's report.
    report: Any


class Module(pl.LightningModule):
    """The language model; ranks take strided parts of global batches, numbered by what is in checkpoints."""

    def __init__(self, strategy, base, dtype=torch.float32, grouped=False, prepare=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.how, self.base, self.grouped = Transformer().to(dtype), strategy, base, grouped
        if prepare is not None:
            prepare(self.net)
        self.losses = []

    def configure_model(self) -> None:
        if self.how == "fsdp1 by hand":
            self.net.blocks = nn.ModuleList(wrap(block) for block in self.net.blocks)
            self.net = wrap(self.net)
        if self.how not in ("fsdp2", "hsdp"):
            return
        mesh = self.device_mesh["data_parallel"]
        if self.how == "hsdp":
            mesh = init_device_mesh("cpu", halves(), mesh_dim_names=("replicas", "pieces"))
        for block in (*self.net.blocks, self.net):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)

    def training_step(self, _, index):
        many = self.trainer.accumulate_grad_batches
        x, y = (part.to(self.device) for part in batch(self.trainer.global_step * many + index % many))
        if self.how != "one":
            x, y = (part[dist.get_rank() :: dist.get_world_size()] for part in (x, y))
        loss = nn.functional.cross_entropy(self.net(x).flatten(0, 1), y.flatten())
        self.losses.append(loss.item())
        return loss

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        if self.how in FSDP1 and gradient_clip_val:
            # Lightning refuses to clip by norm under FSDP1; torch's own way is to ask the root.
            root = self.net if self.how == "fsdp1 by hand" else self.trainer.strategy.model
            root.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self):
        cls, arguments = self.base
        if not self.grouped:
            return cls(self.parameters(), **arguments)
        groups = [], []
        for name, param in self.named_parameters():
            groups[name.endswith(("bias", "norm.weight", "first.weight", "second.weight"))].append(param)
        return cls([{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}], **arguments)


class Watch(pl.Callback):
    """Looks at the state while the strategy still has it."""

    def __init__(self, ours: SecondOrder | None) -> None:
        self.ours, self.sent, self.weights, self.held, self.state = ours, [], {}, {}, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.ours is not None and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.sent.append(self.ours.engines[0].host.world.sent)

    def on_train_end(self, trainer, pl_module) -> None:
        self.held = {clean(name): piece(param).numel() for name, param in pl_module.net.named_parameters()}
        state = [value for values in plain(trainer.optimizers[0]).state.values() for value in values.values()]
        self.state = sum(piece(value).numel() for value in state if isinstance(value, torch.Tensor) and value.ndim)
        with whole(trainer, pl_module) as params:
            self.weights = {clean(name): value.detach().cpu().clone() for name, value in params}
        if self.ours is not None:
            noted.trained(trainer, self.ours.engines, pl_module.how)


class Save(pl.Callback):
    """Saves after one step."""

    def __init__(self, path, at) -> None:
        self.path, self.at = path, at

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.at:
            trainer.save_checkpoint(self.path)


def plain(optimizer):
    """The torch optimizer, inside Lightning's wrapper or DeepSpeed's."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def piece(value):
    """What a rank holds of a tensor."""
    return getattr(value, "ds_tensor", value.to_local() if isinstance(value, DTensor) else value)


@contextmanager
def whole(trainer, module):
    """Names and whole parameters, on every rank."""
    with ExitStack() as stack:
        if module.how in FSDP1:
            stack.enter_context(FullyShardedDataParallel.summon_full_params(trainer.strategy.model, writeback=False))
        if module.how == "zero3":
            zero = sys.modules["deepspeed"].zero
            stack.enter_context(zero.GatheredParameters(list(module.net.parameters())))
        named = list(module.net.named_parameters())
        yield [(name, p.full_tensor() if isinstance(p, DTensor) else p) for name, p in named]


class Double(FSDPPrecision):
    """FSDP1 in float64: nothing is cast."""

    def __init__(self) -> None:
        super().__init__("32-true")

    def convert_module(self, module):
        return module

    @property
    def mixed_precision_config(self):
        return None


class Standing(ClusterEnvironment):
    """Ranks that run already, in one process group: nothing to start, nothing to end."""

    creates_processes_externally = True
    main_address = "127.0.0.1"
    main_port = 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return dist.get_world_size()

    def set_world_size(self, size) -> None:
        assert size == dist.get_world_size()

    def global_rank(self) -> int:
        return dist.get_rank()

    def set_global_rank(self, rank) -> None:
        assert rank == dist.get_rank()

    def local_rank(self) -> int:
        return dist.get_rank()

    def node_rank(self) -> int:
        return 0


def halves():
    """The shape of a mesh: two replicas, each on half of the ranks."""
    return 2, dist.get_world_size() // 2


def made(strategy, whole_files=None):
    """The strategy of a name; its checkpoints are one file with whole tensors, or a folder with pieces."""
    if strategy == "one":
        return "auto"
    if strategy == "ddp":
        return DDPStrategy()
    if strategy == "ddp_so":
        return SecondOrderDDPStrategy()
    if strategy in ("fsdp2", "hsdp"):
        sizes = {"data_parallel_size": dist.get_world_size(), "tensor_parallel_size": 1}
        return ModelParallelStrategy(**sizes, save_distributed_checkpoint=not whole_files)
    if strategy == "fsdp1 by hand":
        return SecondOrderFSDPStrategy()
    if strategy == "fsdp1":
        kind = "sharded" if whole_files is False else "full"
        return SecondOrderFSDPStrategy(auto_wrap_policy={Block}, state_dict_type=kind)
    if strategy == "hsdp1":
        hybrid = {"sharding_strategy": "HYBRID_SHARD", "device_mesh": halves()}
        return SecondOrderFSDPStrategy(auto_wrap_policy={Block}, **hybrid)
    from lightning_so.strategies.deepspeed import SecondOrderDeepSpeedStrategy

    return SecondOrderDeepSpeedStrategy(
        config={
            # Else small parameters are never let go of by stage 3.
            "zero_optimization": {"stage": int(strategy[-1]), "stage3_param_persistence_threshold": 0},
            "train_micro_batch_size_per_gpu": BATCH // dist.get_world_size(),
        },
        full_checkpoint=bool(whole_files),
    )


@contextmanager
def unchanged(strategy):
    """Leave paths, environment, loggers and torch as they were; deepspeed is found meanwhile."""
    before, path, level = dict(os.environ), list(sys.path), logging.root.manager.disable
    linear = nn.functional.linear
    logging.disable(logging.WARNING)
    if strategy.startswith("zero"):
        os.environ["DS_ACCELERATOR"] = "cpu"
        sys.path.append(str(PEERS))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        nn.functional.linear = linear  # ZeRO-3 puts its own there for good, and every later model would run it.
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(before)


def train(
    strategy,
    method,
    base,
    steps=16,
    accumulate=1,
    clip=None,
    precision="32-true",
    dtype=torch.float32,
    grouped=False,
    prepare=None,
    callbacks=(),
    whole_files=None,
    resume=None,
    accelerator="cpu",
    **second_order,
) -> Trained:
    """Train the language model with a Trainer on this rank.

    Args:
        strategy: One of `STRATEGIES`; all but "one" take every rank of the process group, which is there already.
        method: A method of lightning_so, or None for the base optimizer alone.
        base: The class of the base optimizer and its arguments.
        steps: Steps of the optimizer.
        accumulate: Micro-batches a step, each of them a global batch.
        clip: The norm to clip at.
        precision: The Trainer's.
        dtype: The parameters'; DeepSpeed makes float32 of any.
        grouped: Whether biases, norms and the like are a group of their own, without decay.
        prepare: Changes the network before a strategy wraps it.
        callbacks: More callbacks.
        whole_files: Whether a checkpoint is one file with whole tensors (True) or a folder with pieces (False); None
            is what the strategy does when it is not told.
        resume: The checkpoint to go on from, to the same number of steps.
        accelerator: The Trainer's.
        second_order: More arguments of SecondOrder.
    """
    ours = None if method is None else SecondOrder(method, print_plan=False, **second_order)
    watch = Watch(ours)
    several = strategy != "one"
    plugins: list[Any] = [Standing()] if several else []
    if strategy in FSDP1 and dtype == torch.float64:
        plugins.append(Double())
        precision = None
    if strategy in ("one", "ddp") and precision == "16-mixed" and accelerator == "cpu":
        # By its name Lightning takes bf16-mixed on CPU.
        plugins.append(MixedPrecision(precision, "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=256.0)))
        precision = None
    with unchanged(strategy):
        trainer = pl.Trainer(
            accelerator=accelerator,
            strategy=made(strategy, whole_files),
            devices=dist.get_world_size() if several else 1,
            plugins=plugins,
            max_steps=steps,
            max_epochs=1,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=clip,
            precision=precision,
            callbacks=[*([] if ours is None else [ours]), *callbacks, watch],
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Module(strategy, base, dtype, grouped, prepare)
        trainer.fit(module, DataLoader(range(steps * accumulate), batch_size=1), ckpt_path=resume)
        report = None if ours is None else ours.engines[0].report
    return Trained(watch.weights, module.losses, watch.held, watch.state, watch.sent, report)
