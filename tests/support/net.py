"""Train every method for some steps and print hashes of what comes of it, so that a change that moves a bit is seen.

    python -m tests.support.net            all of them
    python -m tests.support.net ddp sgd    those whose names have one of these in them

One line a training: its name, a hash of the weights, and one of what is saved: the state of the engine and that of the
optimizer. Two trees agree on one machine if they print the same; another processor may print other hashes. It uses
the package by its public names alone, so that it runs on trees that are built differently inside.
"""

import hashlib
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import lightning_so as so
from tests.support.peers import DEEPSPEED
from tests.support.problems import Net, batch
from tests.support.trainings import Save, train
from tests.support.world import World

STEPS = 100
ADAMW, SGD = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}), (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
PLAIN, SMALL = (torch.optim.SGD, {"lr": 0.1}), (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9})
SOAP, KFAC, EKFAC = so.SOAP(start=4, period=4), so.KFAC(period=8), so.EKFAC(start=4, period=8)
SHAMPOO, MUON = so.Shampoo(period=4), so.Muon()
MIXTURE = so.Mixture({"Conv2d": KFAC, "*.bias": "base", "wide.*": MUON, "*": SOAP})
BLOCKS = so.Mixture({"*.up.*": KFAC, "*.down.*": MUON, "*.bias": "base", "*": SOAP})
#: A method for layers or matrices, its base, and more of `loop`.
LAYERS = {
    "soap adamw": (SOAP, ADAMW, {}),
    "soap adamw lag": (SOAP, ADAMW, {"lag": 1}),
    "soap adamw verified": (SOAP, ADAMW, {"verify_every": 7}),
    "soap adamw skipped": (SOAP, ADAMW, {"skip": 30}),
    "soap adamw tiles": (so.SOAP(start=4, period=4, cap=5), ADAMW, {}),
    "soap adamw at once": (so.SOAP(start=4, period=4, schedule=so.Synchronous()), ADAMW, {}),
    "soap nadam": (SOAP, (torch.optim.NAdam, {"lr": 3e-3}), {}),
    "soap adagrad": (SOAP, (torch.optim.Adagrad, {"lr": 1e-2}), {}),
    "soap rmsprop": (SOAP, (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.9}), {}),
    "muon adamw": (MUON, ADAMW, {}),
    "muon adamw lag": (MUON, ADAMW, {"lag": 1}),
    "muon sgd": (MUON, SMALL, {}),
    "kfac adamw": (KFAC, ADAMW, {}),
    "kfac adamw lag": (KFAC, ADAMW, {"lag": 1}),
    "kfac sgd": (KFAC, SGD, {}),
    "kfac sgd lag": (KFAC, SGD, {"lag": 1}),
    "kfac sgd verified": (KFAC, SGD, {"verify_every": 7}),
    "kfac sgd skipped": (KFAC, SGD, {"skip": 30}),
    "kfac sgd clipped": (KFAC, SGD, {"clip": 0.5, "accumulate": 2}),
    "kfac sgd sampled": (so.KFAC(period=8, fisher="sampled"), SGD, {}),
    "kfac sgd exact": (so.KFAC(period=8, fisher="exact"), SGD, {}),
    "kfac sgd reduce": (so.KFAC(period=8, sharing="reduce", damping=so.Relative()), SGD, {}),
    "ekfac adamw": (EKFAC, ADAMW, {}),
    "ekfac adamw lag": (EKFAC, ADAMW, {"lag": 1}),
    "ekfac adamw sampled": (so.EKFAC(start=4, period=8, fisher="sampled"), ADAMW, {}),
    "ekfac adamw skipped": (EKFAC, ADAMW, {"skip": 30}),
    "ekfac sgd": (EKFAC, SGD, {}),
    "ekfac sgd lag": (EKFAC, SGD, {"lag": 1}),
    "ekfac sgd verified": (EKFAC, SGD, {"verify_every": 7}),
    "shampoo adamw": (SHAMPOO, ADAMW, {}),
    "shampoo adamw lag": (SHAMPOO, ADAMW, {"lag": 1}),
    "shampoo adamw whiten": (so.Shampoo(period=4, whiten=True), ADAMW, {}),
    "shampoo sgd": (SHAMPOO, SMALL, {}),
    "shampoo sgd lag": (SHAMPOO, SMALL, {"lag": 1}),
    "mixture adamw": (MIXTURE, ADAMW, {}),
    "mixture adamw lag": (MIXTURE, ADAMW, {"lag": 1}),
}
#: A method on the whole vector, its base, and more of `closures`.
VECTORS = {
    "few directions": (so.FewDirections(k=4, every=1, cap=2.0), ADAMW, {}),
    "few directions default": (so.FewDirections(), PLAIN, {}),
    "ogr": (so.OGR(cap=2.0), PLAIN, {}),
    "ogr same batch": (so.OGR(cap=2.0, curvature="same-batch", every=2), ADAMW, {}),
    "auto step": (so.AutoStep(every=2), ADAMW, {}),
    "quadratic model": (so.QuadraticModel(), PLAIN, {}),
    "levenberg marquardt": (so.LevenbergMarquardt(), PLAIN, {"squares": True}),
    "newton burst": (so.NewtonCG(iterations=12), PLAIN, {}),
    "newton slice": (so.NewtonCG(iterations=20, slice=2), PLAIN, {}),
    "newton hessian": (so.NewtonCG(iterations=12, curvature="hessian"), PLAIN, {"product": "exact"}),
    "saddle free krylov": (so.SaddleFreeKrylov(m=3), PLAIN, {}),
    "nystrom": (so.Nystrom(rank=4, every=5), PLAIN, {}),
    "adahessian": (so.AdaHessian(), (torch.optim.AdamW, {"lr": 0.02, "eps": 1e-4, "weight_decay": 0.1}), {}),
    "adahessian diagonal": (so.AdaHessian("diagonal", every=2), (torch.optim.Adam, {"lr": 1e-3, "eps": 1e-3}), {}),
    "sophia": (so.Sophia(every=3), ADAMW, {}),
    "few directions behind kfac": (so.FewDirections(k=4, every=1, cap=2.0), ADAMW, {"beside": KFAC}),
    "auto step behind soap": (so.AutoStep(every=2), ADAMW, {"beside": SOAP}),
}
#: A strategy, a method, its base, and more of `tests.trainings.train`; but "vector" is a method on the whole vector.
TRAINERS = {
    "trainer soap": ("one", SOAP, ADAMW, {}),
    "trainer soap compact": ("one", SOAP, ADAMW, {"state": "compact"}),
    "trainer soap rebuild": ("one", SOAP, ADAMW, {"state": "rebuild"}),
    "trainer kfac": ("one", KFAC, SMALL, {"clip": 1.0, "accumulate": 2, "steps": 40}),
    "trainer ekfac": ("one", EKFAC, ADAMW, {"lag": 1}),
    "trainer few directions": ("one", None, ADAMW, {"vector": so.FewDirections(k=4, every=1, cap=2.0)}),
    "trainer newton": ("one", None, PLAIN, {"vector": so.NewtonCG(iterations=12), "steps": 30}),
    "ddp soap": ("ddp", SOAP, ADAMW, {}),
    "ddp soap lag": ("ddp", SOAP, ADAMW, {"lag": 1}),
    "ddp kfac": ("ddp", KFAC, SMALL, {}),
    "ddp ekfac": ("ddp", EKFAC, ADAMW, {}),
    "ddp mixture": ("ddp", BLOCKS, ADAMW, {}),
    "ddp few directions": ("ddp", None, ADAMW, {"vector": so.FewDirections(k=4, every=1, cap=2.0)}),
    "ddp_so kfac": ("ddp_so", KFAC, SMALL, {}),
    "fsdp2 soap": ("fsdp2", SOAP, ADAMW, {}),
    "fsdp2 soap local": ("fsdp2", SOAP, ADAMW, {"sharding": "local"}),
    "fsdp2 kfac": ("fsdp2", KFAC, ADAMW, {}),
    "fsdp2 ekfac": ("fsdp2", EKFAC, ADAMW, {}),
    "fsdp2 newton slice": ("fsdp2", None, PLAIN, {"vector": so.NewtonCG(iterations=20, slice=2), "steps": 40}),
    "fsdp1 soap": ("fsdp1", SOAP, ADAMW, {"steps": 40}),
    "zero2 soap": ("zero2", SOAP, ADAMW, {"steps": 40}),
    "zero2 kfac": ("zero2", KFAC, ADAMW, {"steps": 40}),
    "zero3 ekfac": ("zero3", EKFAC, ADAMW, {"steps": 40}),
}


def digest(value) -> str:
    """Sixteen digits of a hash of nested containers of tensors and numbers; no order of keys is seen, nor times."""
    found = hashlib.sha256()
    _add(value, found.update)
    return found.hexdigest()[:16]


def _add(value, more) -> None:
    """Hand the bytes of a value on."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        more(f"{value.dtype} {tuple(value.shape)} ".encode())
        more(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        more(f"dict {len(value)} ".encode())
        for key in sorted(value, key=repr):
            if "seconds" not in str(key):
                more(repr(key).encode())
                _add(value[key], more)
    elif isinstance(value, list | tuple):
        more(f"list {len(value)} ".encode())
        for each in value:
            _add(each, more)
    elif value is None or isinstance(value, bool | int | float | str):
        more(f"{value!r} ".encode())
    else:
        raise TypeError(f"no hash for {type(value).__name__}")


def weights_of(model) -> dict[str, torch.Tensor]:
    """Copies."""
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def loop(method, base, lag=0, verify_every=0, skip=None, clip=None, accumulate=1, steps=STEPS):
    """A plain loop with a method for layers or matrices; `skip` is a step whose gradient is not finite."""
    torch.manual_seed(0)
    model = Net()
    optimizer = base[0](model.parameters(), **base[1])
    engine = so.attach(model, optimizer, method, lag=lag, verify_every=verify_every)
    for step in range(steps * accumulate):
        x, y = batch(step)
        loss = F.cross_entropy(model(x), y) / accumulate
        engine.before_backward(loss)
        loss.backward()
        if (step + 1) % accumulate:
            continue
        if step == skip:
            model.tall.weight.grad[0, 0] = float("nan")
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return ended(model, optimizer, [engine])


def closures(method, base, product="difference", beside=None, squares=False, steps=STEPS):
    """A plain loop with a method on the whole vector, and one for layers or matrices before it; full batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double() if squares else Net()
    optimizer = base[0](model.parameters(), **base[1])
    engines = [] if beside is None else [so.attach(model, optimizer, beside)]
    engines.append(so.attach(model, optimizer, method, product=product))
    if squares:
        x = torch.randn(20, 3, dtype=torch.float64)
        y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)

    for step in range(steps):

        def closure(step=step):
            optimizer.zero_grad()
            if squares:
                loss = F.mse_loss(model(x), y)
            else:
                rows, classes = batch(step // 2)  # Each comes twice, so that steps are judged both ways.
                loss = F.cross_entropy(model(rows), classes)
            loss.backward()
            return loss

        optimizer.step(closure)
    return ended(model, optimizer, engines)


def ended(model, optimizer, engines):
    """Hashes of the weights, and of all states, before the engines leave and after."""
    weights, states = weights_of(model), [part.state_dict() for part in (*engines, optimizer)]
    found = digest(weights), digest([states, _left(optimizer, engines)])
    assert all(value.isfinite().all() for value in weights.values())
    return found


def _left(optimizer, engines):
    """The optimizer's state when the engines have left."""
    for engine in reversed(engines):
        engine.detach()
    return optimizer.state_dict()


def trainer(world, strategy, method, base, vector=None, steps=STEPS, **more):
    """A real Trainer that saves at its end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "end.ckpt"
        callbacks = [] if vector is None else [so.MatrixFree(vector, verbose=False)]
        callbacks.append(Save(str(path), steps))
        run = train if strategy == "one" else partial(world().run, train)
        found = run(strategy, method, base, steps, callbacks=callbacks, whole_files=True, **more)
        ranks = [found] if strategy == "one" else found
        file = torch.load(path, weights_only=True)
    saved = [file["state_dict"], file["optimizer_states"], file["callbacks"]]
    assert any(key.startswith("lightning_so.") for key in file["callbacks"])
    return digest([rank.weights for rank in ranks]), digest(saved)


def main(wanted) -> None:
    """Print a line a training."""
    torch.set_num_threads(1)
    # What others print, ranks among them, goes to where errors go, and the lines alone to the output.
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pools = []

    def world():
        if not pools:
            pools.append(World(2))
        return pools[0]

    jobs = {f"loop {name}": partial(loop, method, base, **more) for name, (method, base, more) in LAYERS.items()}
    jobs |= {
        f"vector {name}": partial(closures, method, base, **more) for name, (method, base, more) in VECTORS.items()
    }
    jobs |= {name: partial(trainer, world, *start, **more) for name, (*start, more) in TRAINERS.items()}
    for name, job in jobs.items():
        if wanted and not any(part in name for part in wanted):
            continue
        if name.startswith("zero") and DEEPSPEED is None:
            print(f"{name:<36} left out: deepspeed is not there", file=lines, flush=True)
            continue
        weights, state = job()
        print(f"{name:<36} {weights}  {state}", file=lines, flush=True)
    for pool in pools:
        pool.close()


if __name__ == "__main__":
    main(sys.argv[1:])
