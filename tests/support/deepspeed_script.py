"""Trainings with DeepSpeed on two CPU ranks, for subprocess tests: python -m tests.support.deepspeed_script out."""

import importlib
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from lightning_so import KFAC, SecondOrder
from tests.support.lightning_script import GlobalBatches
from tests.support.problems import Net, batch

#: Whether importing the package imports deepspeed.
EAGER = "deepspeed" in sys.modules
STEPS = 24
SGD = {"lr": 0.1, "momentum": 0.9}
#: Case -> (import name of Lightning, strategy or its arguments, micro-batches a step).
CASES = {
    f"stage {stage}, accumulate {many}": ("pytorch_lightning", {"stage": stage}, many)
    for stage in range(4)
    for many in (1, 2)
}
CASES["by name"] = ("pytorch_lightning", "deepspeed_so_stage_2", 2)
CASES["lightning.pytorch"] = ("lightning.pytorch", "deepspeed_so_stage_1", 2)
CASES["by hand"] = ("lightning.pytorch", {"config": {"zero_optimization": {"stage": 1}}}, 2)
#: The same strategy with the stock one's way of going back, which divides twice.
STOCK = "stock"
CASES[STOCK] = ("pytorch_lightning", {"stage": 2}, 2)


class Batches(GlobalBatches):
    """The same in float32."""

    def __getitem__(self, index):
        return batch(index)


def loader():
    """Global batches; Lightning's strategy asks for a batch sampler, which there is none of with batch_size=None."""
    return DataLoader(Batches(), batch_size=1, collate_fn=lambda items: items[0])


def module(lightning):
    """A LightningModule of one import name; each rank takes its strided part of the batch."""

    class Module(importlib.import_module(lightning).LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net, self.found = Net(), {}

        def training_step(self, data, index):
            x, y = (part[self.global_rank :: self.trainer.world_size] for part in data)
            return torch.nn.functional.cross_entropy(self.net(x), y)

        def validation_step(self, data, index):
            self.found["validated"] = self.training_step(data, index)

        def on_train_end(self):
            import deepspeed

            params = dict(self.net.named_parameters())
            with deepspeed.zero.GatheredParameters(list(params.values())):
                self.found |= {name: param.detach().clone() for name, param in params.items()}

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), **SGD)

    return Module()


def made(case):
    """The strategy of a case."""
    from lightning_so.strategies.deepspeed import CLASSES

    lightning, strategy, _ = CASES[case]
    if isinstance(strategy, str):
        return strategy
    cls = CLASSES[lightning]
    if case == STOCK:
        cls = type("Stock", (cls,), {"backward": importlib.import_module(lightning).strategies.DDPStrategy.backward})
    return cls(**strategy)


def train(case, ours=None, **arguments):
    """Train a new module, or a given one, and what came of it."""
    lightning, _, many = CASES[case]
    trainer = importlib.import_module(lightning).Trainer(
        accelerator="cpu",
        strategy=made(case),
        devices=2,
        max_epochs=1,
        accumulate_grad_batches=many,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    ours = ours or module(lightning)
    trainer.fit(ours, loader())
    return trainer, ours


def main(out):
    torch.set_num_threads(1)
    found = {"eager": EAGER}
    for case in CASES:
        trainer, ours = train(case)
        found[case] = ours.found
        engine = trainer.strategy.deepspeed_engine
        found.setdefault("world", (engine.world_size, engine.global_rank))
    trainer, ours = train("by name", limit_val_batches=1)
    trainer.validate(ours, loader(), verbose=False)
    found["validated"] = ours.found["validated"]
    method = SecondOrder(KFAC(period=4), print_plan=False)
    for fit in ("first", "second"):
        # Validation takes all hooks off the module's layers.
        trainer, ours = train("by name", ours if fit == "second" else None, callbacks=[method])
        trainer.validate(ours, loader(), verbose=False)
        engine = method.engines[0]
        found[fit] = (engine.report.step, engine.report.solves, sorted(engine.recorders[0].silent))
    torch.save(found, Path(out) / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
