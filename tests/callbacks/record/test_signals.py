"""A training that is told to stop leaves its recording; one that is killed leaves that of some minutes before."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_so.recording.file import read

TRAINING = """
import signal, sys, time
import pytorch_lightning as pl, torch
from torch.utils.data import DataLoader
from lightning_so import Recorder
from lightning_so.callbacks.record import run

run.PERIOD = float(sys.argv[2])
signal.signal(signal.SIGINT, signal.default_int_handler)  # It is ignored in what a shell has put into the background.

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        if batch_idx == 40:
            print("ready", flush=True)
        time.sleep(0.01)
        return self.net(torch.ones(8, 4)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

trainer = pl.Trainer(
    max_steps=5000, callbacks=[Recorder(root=sys.argv[1])], logger=False, accelerator="cpu",
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(Net(), DataLoader(range(5000)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "period", "why"),
    [
        pytest.param(signal.SIGTERM, 300, "sigterm", id="SIGTERM"),
        pytest.param(signal.SIGINT, 300, "exception", id="SIGINT"),
        pytest.param(signal.SIGKILL, 0, "checkpoint", id="SIGKILL"),
    ],
)
def test_a_signal_leaves_a_recording(number, period, why, tmp_path):
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(each or str(Path.cwd()) for each in sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", TRAINING, str(tmp_path), str(period)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=path) as process:
        assert process.stdout is not None
        assert any(line.strip() == "ready" for line in process.stdout)
        process.send_signal(number)
        process.stdout.read()
    found = read(tmp_path / "recording" / "rank-0000.json.gz")
    assert found["written"]["why"] == why
    steps = found["last"]["step"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= (16 if number == signal.SIGKILL else 40)
