"""What cannot work under a strategy is refused by name in a real Trainer, before the first step, on every rank."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader

from lightning_so import KFAC, SOAP, ConfigError, Muon, SecondOrder, attach
from tests.support.peers import needs_deepspeed
from tests.support.trainings import Standing, unchanged


class Module(pl.LightningModule):
    """Two layers, which may be cut along ranks that see the same batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.steps = nn.Linear(6, 8), nn.Linear(8, 4), 0

    def training_step(self, _, index):
        self.steps += 1
        return self.second(self.first(torch.ones(3, 6))).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


class Columns(Module):
    """The rows of one weight are cut as `fully_shard` cuts them."""

    def configure_model(self) -> None:
        self.cut(first=ColwiseParallel(output_layouts=Replicate()))

    def cut(self, **plan) -> None:
        parallelize_module(self, self.device_mesh["tensor_parallel"], plan)


class Both(Columns):
    """As tensor parallelism is used: columns of the second weight, too."""

    def configure_model(self) -> None:
        self.cut(first=ColwiseParallel(), second=RowwiseParallel())


def told(cls, method, config=None, precision="32-true"):
    """What a rank says, and how many batches it has seen."""
    with unchanged("fsdp2" if config is None else "zero2"):
        if config is None:
            strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
        else:
            from lightning_so.strategies.deepspeed import SecondOrderDeepSpeedStrategy

            strategy = SecondOrderDeepSpeedStrategy(config={"zero_optimization": {"stage": 2}, **config})
        module = cls()
        trainer = pl.Trainer(
            accelerator="cpu",
            strategy=strategy,
            devices=2,
            plugins=[Standing()],
            precision=precision,
            max_steps=2,
            callbacks=[SecondOrder(method, print_plan=False)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with pytest.raises(ConfigError) as caught:
            trainer.fit(module, DataLoader(range(8)))
        return str(caught.value), module.steps


@pytest.mark.parametrize("cls", [Columns, Both])
@pytest.mark.parametrize("method", [SOAP(), KFAC()], ids=["soap", "kfac"])
def test_tensor_parallelism_is_refused(two, cls, method):
    for text, steps in two.run(told, cls, method):
        assert "first.weight: a parameter of shape (8, 6) is placed (Shard(dim=0),) on the mesh ('tensor_par" in text
        assert "leave the parameter to another optimizer" in text
        assert "tensor_parallel_size=1" in text
        assert steps == 0


def mixed(method, steps):
    """Weights of a plain layer after a block that is cut over ranks; in one process all are whole."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(6, 8), "second": nn.Linear(8, 4), "last": nn.Linear(4, 3)}).double()
    if dist.is_initialized():
        mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
        parallelize_module(model, mesh, {"first": ColwiseParallel(), "second": RowwiseParallel()})
    own = torch.optim.AdamW(model["last"].parameters(), lr=1e-2)
    other = torch.optim.AdamW([*model["first"].parameters(), *model["second"].parameters()], lr=1e-2)
    engine = attach(model, own, method)
    for step in range(steps):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        loss = model["last"](torch.tanh(model["second"](torch.tanh(model["first"](x))))).square().mean()
        engine.before_backward(loss)
        loss.backward()
        for optimizer in (own, other):
            optimizer.step()
            optimizer.zero_grad()
    solves = engine.report.solves
    engine.detach()
    return model["last"].weight.detach().clone(), solves


@pytest.mark.slow
@pytest.mark.parametrize("method", [SOAP(start=4, period=4), Muon()], ids=["soap", "muon"])
def test_beside_layers_that_are_left_to_another_optimizer_the_others_train_as_in_one_process(two, method):
    alone, solves = mixed(method, 16)
    for weight, solved in two.run(mixed, method, 16):
        torch.testing.assert_close(weight, alone, rtol=0, atol=1e-10)
        assert solved == solves


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "precision", "got"),
    [({"fp16": {"enabled": True}}, "32-true", "fp16.enabled in the configuration"), ({}, "16-mixed", "16-mixed")],
)
def test_half_precision_with_a_loss_scale_under_deepspeed_is_refused(two, config, precision, got):
    for text, steps in two.run(told, Module, SOAP(), config, precision):
        assert got in text
        assert "loss scale" in text
        assert "precision='bf16-mixed'" in text
        assert steps == 0


def test_a_strategy_that_is_not_known_is_refused():
    trainer = SimpleNamespace(strategy=type("OtherStrategy", (), {})(), world_size=2, callbacks=[], loggers=[])
    with pytest.raises(ConfigError, match=r"2 process\(es\) with OtherStrategy\. Use strategy='ddp'"):
        SecondOrder(SOAP()).setup(trainer, Module(), "fit")
    trainer.world_size = 1
    SecondOrder(SOAP()).setup(trainer, Module(), "fit")
