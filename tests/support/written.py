"""Write checkpoints of every kind, small ones, with the weights that a run has some steps after each of them.

    python -m tests.support.written FOLDER

Those in tests/together/written are of commit fd39489, from before the package was built anew inside, and are not to be
written again: `tests.together.test_written` reads them with the code of today.
"""

import copy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

import lightning_so as so
from tests.support.trainings import Save, train
from tests.support.world import World

#: Steps after a checkpoint.
MORE = 20
ADAMW, SGD = (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}), (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
PLAIN, SMALL = (torch.optim.SGD, {"lr": 0.1}), (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9})
ADAM = (torch.optim.Adam, {"lr": 1e-2, "eps": 1e-3})
#: Arguments that were defaults then.
THEN = {"fisher": "empirical", "clip": 3e-5}
SOAP, KFAC, EKFAC = so.SOAP(start=4, period=4), so.KFAC(period=4, **THEN), so.EKFAC(start=4, period=4, **THEN)
MIXTURE = so.Mixture({"0.*": KFAC, "*.bias": "base", "*": SOAP})


class Loop(NamedTuple):
    """A plain loop that is saved after some steps; options are of `attach`."""

    method: Any
    base: tuple[Any, dict[str, Any]]
    at: int = 27
    options: Mapping[str, Any] = MappingProxyType({})


class Fit(NamedTuple):
    """A Trainer that is saved after some steps; options are of `SecondOrder`."""

    strategy: str
    method: Any
    base: tuple[Any, dict[str, Any]]
    at: int = 12
    options: Mapping[str, Any] = MappingProxyType({})


LAYERS = {
    "soap": Loop(SOAP, ADAMW),
    "soap lag": Loop(SOAP, ADAMW, options={"lag": 1}),
    "muon": Loop(so.Muon(), SMALL),
    "shampoo": Loop(so.Shampoo(period=4), ADAMW),
    "shampoo sgd": Loop(so.Shampoo(period=4), SMALL),
    "kfac": Loop(KFAC, SGD),
    "kfac adamw lag": Loop(KFAC, ADAMW, options={"lag": 1}),
    "kfac sampled": Loop(so.KFAC(period=4, clip=3e-5, fisher="sampled"), SGD),
    "ekfac": Loop(EKFAC, ADAMW),
    "ekfac sgd": Loop(EKFAC, SGD),
    # Late and seldom, a step observes some layers alone.
    "kfac late": Loop(so.KFAC(period=16, **THEN), SGD, at=203),
    "ekfac late": Loop(so.EKFAC(period=16, **THEN), SGD, at=203),
    "mixture": Loop(MIXTURE, ADAMW),
}
EXACT = {"options": {"product": "exact"}}
VECTORS = {
    "few directions": Loop(so.FewDirections(k=3, every=1, cap=2.0), ADAMW, **EXACT),
    "ogr": Loop(so.OGR(cap=2.0), PLAIN),
    "auto step": Loop(so.AutoStep(every=2), SGD, **EXACT),
    "quadratic model": Loop(so.QuadraticModel(growth=1.1), PLAIN, **EXACT),
    "nystrom": Loop(so.Nystrom(rank=4, every=5), PLAIN, **EXACT),
    "newton": Loop(so.NewtonCG(iterations=6), PLAIN, **EXACT),
    "newton slice": Loop(so.NewtonCG(iterations=12, slice=2), PLAIN, **EXACT),
    "adahessian": Loop(so.AdaHessian("diagonal"), ADAM, **EXACT),
    "sophia": Loop(so.Sophia(every=3), ADAMW, **EXACT),
}
FITS = {
    "trainer full": Fit("one", SOAP, ADAMW, options={"state": "full"}),
    "trainer compact": Fit("one", SOAP, ADAMW, options={"state": "compact"}),
    "trainer rebuild": Fit("one", SOAP, ADAMW, options={"state": "rebuild"}),
    "trainer ekfac lag": Fit("one", EKFAC, ADAMW, options={"lag": 1}),
    "ddp kfac": Fit("ddp", KFAC, SMALL),
    "fsdp2 soap": Fit("fsdp2", SOAP, ADAMW),
    "fsdp2 soap local": Fit("fsdp2", SOAP, ADAMW, options={"sharding": "local"}),
}


def made(loop):
    """Model, optimizer and engine."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    optimizer = loop.base[0](model.parameters(), **loop.base[1])
    return model, optimizer, so.attach(model, optimizer, loop.method, **loop.options)


def walk(model, optimizer, engine, numbers) -> None:
    """Steps of a plain loop, on batches that are the same to the last bit wherever they are made."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        x = torch.rand(8, 6, generator=generator, dtype=torch.float64) - 0.5
        y = torch.randint(0, 4, (8,), generator=generator)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if hasattr(engine, "before_backward"):
                engine.before_backward(loss)
            loss.backward()
            return loss

        if hasattr(engine, "before_backward"):
            closure()
            optimizer.step()
        else:
            optimizer.step(closure)


def bare(net) -> None:
    """Leave the language model its first and last layers."""
    net.blocks = nn.ModuleList()


def fit(world, kind, **more):
    """Train with a Trainer; what came of it on the first rank. `world` gives two ranks."""
    named = {"steps": kind.at + MORE, "dtype": torch.float64, "prepare": bare, "whole_files": True, **kind.options}
    arguments = kind.strategy, kind.method, kind.base
    if kind.strategy == "one":
        return train(*arguments, **named, **more)
    return world().run(train, *arguments, **named, **more)[0]


def looped(loop):
    """The states of a plain loop, and the weights that it goes on to without having stopped."""
    parts = made(loop)
    walk(*parts, range(loop.at))
    states = [copy.deepcopy(part.state_dict()) for part in parts]
    walk(*parts, range(loop.at, loop.at + MORE))
    return {"states": states, "expected": {name: p.detach().clone() for name, p in parts[0].named_parameters()}}


def fitted(world, kind):
    """A Trainer's checkpoint, and the weights that a run goes on to from it."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "some.ckpt")
        fit(world, kind, callbacks=[Save(path, kind.at)])
        expected = fit(world, kind, resume=path).weights
        return {"checkpoint": torch.load(path, weights_only=True), "expected": expected}


def main(folder: Path) -> None:
    """Write all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    pool = World(2)
    found = {name: looped(loop) for name, loop in (LAYERS | VECTORS).items()}
    found |= {name: fitted(lambda: pool, kind) for name, kind in FITS.items()}
    pool.close()
    for name, content in found.items():
        torch.save(content, folder / f"{name.replace(' ', '_')}.pt")


if __name__ == "__main__":
    from tests.support import written  # Under its own name, for the ranks.

    written.main(Path(sys.argv[1]))
