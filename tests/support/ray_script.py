"""Two workers of Ray, one of which is lost in its second epoch: python -m tests.support.ray_script out."""

import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

# The name of Lightning that Ray takes where there are both.
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_so import SOAP, SecondOrder
from tests.support.problems import Net, batch

EPOCHS, STEPS = 3, 8
#: The step before which a worker is killed, once.
LOST = 12


class GlobalBatches(Dataset):
    """Every item is the global batch of a step; each rank takes its strided part in the training step."""

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        return batch(index, torch.float64)


class Module(pl.LightningModule):
    """Net in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = Net(torch.float64)

    def training_step(self, data, index):
        x, y = (part[self.global_rank :: self.trainer.world_size] for part in data)
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Lost(pl.Callback):
    """One worker is killed, once; notes the step from which the training goes on."""

    def __init__(self, out) -> None:
        self.out, self.start = out, 0

    def on_train_start(self, trainer, pl_module) -> None:
        self.start = trainer.global_step

    def on_train_batch_start(self, trainer, *_) -> None:
        note = self.out / "lost"
        if trainer.global_step == LOST and trainer.global_rank == 1 and not note.exists():
            note.touch()
            # A checkpoint is one to go on from once Ray's controller has heard of it, which asks now and then.
            known = self.out / "run" / "checkpoint_manager_snapshot.json"
            while not (known.exists() and "checkpoint_" in known.read_text()):
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)


def made(*callbacks, **named):
    """A Trainer, whose first callback is ours."""
    torch.set_num_threads(1)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[SecondOrder(SOAP(start=4, period=4), print_plan=False), *callbacks],
        use_distributed_sampler=False,
        **quiet,
        **named,
    )


def fit(trainer, checkpoint=None):
    """Train, and give what came of it."""
    module, data = Module(), DataLoader(GlobalBatches(), batch_size=None)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=checkpoint and True)
    report = trainer.callbacks[0].engines[0].report
    solves = report.solved_here, report.solves
    return {"weights": module.net.state_dict(), "solves": solves, "rotated": report.rotated}


def worker(config) -> None:
    """What Ray runs on each worker, and again after one is lost."""
    import ray.train
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, RayTrainReportCallback, prepare_trainer

    out, before = Path(config["out"]), ray.train.get_checkpoint()
    lost = Lost(out)
    ray_s = {"strategy": RayDDPStrategy(), "plugins": [RayLightningEnvironment()], "devices": "auto"}
    trainer = prepare_trainer(made(RayTrainReportCallback(), lost, **ray_s))
    with nullcontext() if before is None else before.as_directory() as folder:
        facts = fit(trainer, folder and f"{folder}/{RayTrainReportCallback.CHECKPOINT_NAME}")
    torch.save(facts | {"resumed": lost.start}, out / f"rank{trainer.global_rank}.pt")


def main(out) -> None:
    """Start Ray on this machine, small, and train."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(num_cpus=2, object_store_memory=100 << 20, include_dashboard=False)
    run = RunConfig(name="run", storage_path=out, failure_config=FailureConfig(max_failures=1))
    scaling = ScalingConfig(num_workers=2, use_gpu=False)
    TorchTrainer(worker, train_loop_config={"out": out}, scaling_config=scaling, run_config=run).fit()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
