"""What the ranks of the pool run of docs/how-to/extending.md."""

import copy

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from lightning_so import KFAC, SOAP, SecondOrder, attach
from tests.support import page, ranks
from tests.support.problems import Net, batch
from tests.support.trainings import Standing, unchanged

BASES = {
    "adamw": (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
}


def method_of(name, modules):
    return {
        "soap": lambda: SOAP(start=4, period=4),
        "kfac": lambda: KFAC(fisher="empirical", period=4),
        "onesided": lambda: modules.one_sided.OneSided(period=4),
    }[name]()


def replicated(base, shard=True):
    """The page's method on a model that is whole on every rank; see `ranks.train`."""
    with page.modules("one_sided") as modules:
        method = method_of("onesided", modules)
        return ranks.train(method, *BASES[base], 24, shard=shard, dtype=torch.float64)[:2]


def gathered(modules, model):
    """Whole weights by name."""
    return {
        name: modules.cut.Gather.apply(p, *p.cut).detach() if hasattr(p, "cut") else p.detach()
        for name, p in model.named_parameters()
    }


def cut(name, base, several=True, steps=16):
    """A plain loop on the page's pieces: whole weights, how many numbers this rank holds, the engine's state."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    with page.modules() as modules:
        torch.manual_seed(rank)  # Ranks begin with the weights of the first.
        model = Net(torch.float64)
        wrapped = modules.cut.Cut(model) if several else model
        cls, arguments = BASES[base]
        optimizer = cls(model.parameters(), **arguments)
        engine = attach(model, optimizer, method_of(name, modules))
        for step in range(steps):
            x, y = batch(step, torch.float64)
            loss = nn.functional.cross_entropy(wrapped(x[rank::world]), y[rank::world])
            optimizer.zero_grad()
            engine.before_backward(loss)
            loss.backward()
            optimizer.step()
        held = sum(p.numel() for p in model.parameters())
        weights, state = gathered(modules, model), copy.deepcopy(engine.state_dict())
        engine.detach()
    return weights, held, state


class Module(pl.LightningModule):
    """Net on global batches, of which every rank takes its part."""

    def __init__(self, base) -> None:
        super().__init__()
        self.net, self.base = Net(torch.float64), base

    def training_step(self, _, index):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        x, y = batch(index, torch.float64)
        return nn.functional.cross_entropy(self.net(x[rank::world]), y[rank::world])

    def configure_optimizers(self):
        cls, arguments = BASES[self.base]
        return cls(self.net.parameters(), **arguments)


def fitted(name, base, strategy="cut", steps=16):
    """A Trainer by the strategy's name: whole weights, and the wrapper's type."""
    several = strategy != "auto"
    with page.modules() as modules, unchanged("cut"):
        torch.manual_seed(0)
        module, ours = Module(base), SecondOrder(method_of(name, modules), print_plan=False)
        trainer = pl.Trainer(
            accelerator="cpu",
            strategy=strategy,
            devices=dist.get_world_size() if several else 1,
            plugins=[Standing()] if several else [],
            max_epochs=1,
            callbacks=[ours],
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(range(steps), batch_size=1))
        return gathered(modules, module.net), type(trainer.strategy).__name__
