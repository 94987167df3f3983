"""Recipes for resume checks, importable in processes of their own: module, data and Trainer arguments, made anew."""

import random

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_so import SOAP, SecondOrder
from tests.support.problems import Net, batch

ROWS, SIZE = 192, 8


class Samples(Dataset):
    """The samples of the shared stream of batches."""

    def __init__(self, dtype=torch.float32):
        parts = [batch(step, dtype) for step in range(ROWS // SIZE)]
        self.x, self.y = (torch.cat(part) for part in zip(*parts, strict=True))

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class Resumable(DataLoader):
    """A loader that Lightning puts back to its place."""

    place = 0

    def __iter__(self):
        first, self.place = self.place, 0
        for number, each in enumerate(super().__iter__()):
            if number >= first:
                self.place = number + 1
                yield each
        self.place = 0

    def state_dict(self):
        return {"rows": self.place * self.batch_size}

    def load_state_dict(self, state):
        self.place = state["rows"] // self.batch_size


class Module(pl.LightningModule):
    """Net under AdamW."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.net = Net(dtype)

    def loss(self, x, y):
        return nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, data, index):
        return self.loss(*data)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Dropping(Module):
    """With random numbers in its steps."""

    def loss(self, x, y):
        return super().loss(nn.functional.dropout(x, 0.1), y)


class Counting(Module):
    """Keeps a number that changes its loss, and that no checkpoint holds."""

    seen = 0

    def loss(self, x, y):
        self.seen += 1
        return super().loss(x, y) * (1 + 0.1 * self.seen)


class Scheduled(Module):
    """Its schedule is a function, which no checkpoint holds."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Sharing(Module):
    """Every rank takes its part of a batch that all have, so that no step hangs on the number of ranks."""

    def training_step(self, data, index):
        return self.loss(*(part[self.global_rank :: self.trainer.world_size] for part in data))


class Data(pl.LightningDataModule):
    """The samples, in a loader that can be put back to its place, or in a plain one."""

    def __init__(self, resumable: bool = True) -> None:
        super().__init__()
        self.loader = Resumable if resumable else DataLoader

    def train_dataloader(self):
        return self.loader(Samples(), SIZE)


class Unseeded(Module):
    """Starts anywhere."""

    def __init__(self):
        super().__init__()
        self.net.scale.data += 0.1 * random.SystemRandom().random()


def trainer(*callbacks, **arguments):
    return {"accelerator": "cpu", "devices": 1, "max_epochs": 9, "callbacks": list(callbacks), **arguments}


def soap(**arguments):
    return SecondOrder(SOAP(start=4, period=4), print_plan=False, **arguments)


def exact():
    return Module(), Resumable(Samples(), SIZE), trainer(soap())


def plain_loader():
    return Module(), DataLoader(Samples(), SIZE), trainer(soap())


def epochs():
    return Module(), DataLoader(Samples(), SIZE), trainer(soap(), limit_train_batches=8)


def shuffled():
    return Module(), DataLoader(Samples(), SIZE, shuffle=True), trainer(soap(), limit_train_batches=8)


def without():
    return Module(), Resumable(Samples(), SIZE), trainer()


def compact():
    return Module(), Resumable(Samples(), SIZE), trainer(soap(state="compact"))


def dropping():
    return Dropping(), Resumable(Samples(), SIZE), trainer(soap())


class Remember(pl.Callback):
    """Puts the random state back where a checkpoint was written."""

    state = None

    def state_dict(self):
        return {"state": torch.get_rng_state()}

    def load_state_dict(self, state):
        self.state = state["state"]

    def on_train_batch_start(self, *_):
        if self.state is not None:
            torch.set_rng_state(self.state)
            self.state = None


def remembering():
    return Dropping(), Resumable(Samples(), SIZE), trainer(soap(), Remember())


def counting():
    return Counting(), Resumable(Samples(), SIZE), trainer(soap())


def accumulating():
    return Module(), Resumable(Samples(), SIZE // 2), trainer(soap(), accumulate_grad_batches=2)


def scheduled():
    return Scheduled(1.0), Resumable(Samples(), SIZE), trainer(soap())


def rescheduled():
    return Scheduled(0.5), Resumable(Samples(), SIZE), trainer(soap())


def short():
    return Module(), Resumable(Samples(), SIZE), trainer(soap(), max_epochs=1, limit_train_batches=4)


def two_ranks():
    return (
        Sharing(),
        Resumable(Samples(), SIZE),
        trainer(soap(), devices=2, strategy="ddp", use_distributed_sampler=False),
    )


def unseeded():
    return Unseeded(), Resumable(Samples(), SIZE), trainer(soap())


def small_batches():
    return Module(), Resumable(Samples(), SIZE // 2), trainer(soap())


class Forgetful(SecondOrder):
    """Does not take what a checkpoint holds."""

    def load_state_dict(self, state):
        pass


def forgetful():
    return Module(), Resumable(Samples(), SIZE), trainer(Forgetful(SOAP(start=4, period=4), print_plan=False))
