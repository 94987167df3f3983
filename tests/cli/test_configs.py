"""configs/: every configuration of a usual task trains as it is, for a few steps."""

import functools

import pytest
import pytorch_lightning as pl

from lightning_so import MatrixFree, SecondOrder
from lightning_so.cli.__main__ import main
from tests.support.forked import ROOT

QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false"]
VALIDATE = ["--trainer.check_val_every_n_epoch=1", "--trainer.limit_val_batches=2"]
#: A training's steps, its own measure, and between what it lies after them: below what it begins with.
FEW = {
    "vision": (25, "val_loss", (0.1, 2.0)),
    "language": (12, "val_loss", (2.5, 4.5)),
    "autoencoder": (15, "val_loss", (1.0, 8.0)),
    "pinn": (10, "relative_error", (0.1, 60.0)),
    "tabular": (35, "val_loss", (0.02, 0.5)),
    "finetune": (12, "val_loss", (2.0, 4.5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_every_configuration_of_a_task_trains(name, tmp_path, monkeypatch, capsys):
    steps, measure, (low, high) = FEW[name]
    more = [f"--model.source_steps={steps}", f"--model.checkpoint={tmp_path}/source.pt"] if name == "finetune" else []
    more += ["--trainer.val_check_interval=12"] if name in ("language", "finetune") else []
    trained, fit = [], pl.Trainer.fit

    @functools.wraps(fit)
    def noted(self, **given):
        trained.append(self)
        fit(self, **given)

    monkeypatch.setattr(pl.Trainer, "fit", noted)
    line = [
        "fit",
        "--config",
        str(ROOT / "configs" / f"{name}.yaml"),
        f"--trainer.max_steps={steps}",
        *VALIDATE,
        *QUIET,
    ]
    assert main([*line, f"--trainer.default_root_dir={tmp_path}", *more]) == 0, capsys.readouterr().err
    (trainer,) = trained
    assert trainer.global_step == steps
    assert low < float(trainer.callback_metrics[measure]) < high
    assert [type(each) for each in trainer.callbacks if isinstance(each, SecondOrder | MatrixFree)]


def test_every_configuration_says_how_it_is_run():
    for file in (ROOT / "configs").glob("*.yaml"):
        assert file.read_text().splitlines()[0].endswith(f"fit --config configs/{file.name}"), file
    assert {f"{name}.yaml" for name in FEW} <= {file.name for file in (ROOT / "configs").glob("*.yaml")}
