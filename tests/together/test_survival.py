"""One rank is not like the others: its gradient, its solves, its clock; a disk is full; a process is lost."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist

from lightning_so import KFAC, SOAP
from lightning_so.callbacks.restart import checkpoints
from tests.support.forked import Started
from tests.support.trainings import train

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.05})
HOW = {"soap": (SOAP(start=4, period=4), ADAMW), "kfac": (KFAC(fisher="empirical", period=4), SGD)}
STEPS, AT = 20, 8


class Poison(pl.Callback):
    """One rank's gradient is NaN in one step, before it is reduced."""

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if dist.get_rank() == 1 and trainer.global_step == AT:
            loss.register_hook(lambda g: g * float("nan"))


def poisoned(strategy, how):
    # Ranks with pieces have no whole weights to compare.
    return train(strategy, *how, steps=STEPS, callbacks=[Poison()], compare_every=int(strategy == "ddp"))


@pytest.mark.thread("microsoft/dion#79")
@pytest.mark.slow
@pytest.mark.fault("a NaN gradient on one rank")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_nan_gradient_on_one_rank(two, seen, strategy):
    ends = two.run(poisoned, strategy, HOW["soap"])
    assert [end.report.skipped for end in ends] == [1, 1]
    for name, value in ends[0].weights.items():
        assert torch.equal(value, ends[1].weights[name])
        assert value.isfinite().all()
    seen(f"{strategy}: the step is skipped on both ranks and counted; weights finite and equal")


def failing(strategy, how):
    """No matrix of this rank's solves can be decomposed, from one step on."""
    made = torch.linalg.cholesky_ex, torch.linalg.eigh, torch.linalg.qr
    if dist.get_rank() == 1:

        def broken(*arguments, **named):
            raise torch.linalg.LinAlgError("no convergence on this rank")

        def unfinished(matrix, **named):
            return matrix * float("nan"), torch.ones(matrix.shape[:-2], dtype=torch.int32)

        def not_a_number(matrix, **named):
            return matrix * float("nan"), matrix

        torch.linalg.cholesky_ex, torch.linalg.eigh, torch.linalg.qr = unfinished, broken, not_a_number
    try:
        return train(strategy, *how, steps=STEPS, compare_every=1)
    finally:
        torch.linalg.cholesky_ex, torch.linalg.eigh, torch.linalg.qr = made


@pytest.mark.thread("own")
@pytest.mark.slow
@pytest.mark.fault("solves that fail on one rank only")
@pytest.mark.parametrize("method", HOW)
def test_solves_that_fail_on_one_rank(two, seen, method):
    ends = two.run(failing, "ddp", HOW[method])
    assert ends[0].report.failures == ends[1].report.failures > 0
    assert ends[0].report.solves > ends[0].report.failures
    for name, value in ends[0].weights.items():
        assert torch.equal(value, ends[1].weights[name])
        assert value.isfinite().all()
    seen(f"{method}: {ends[0].report.failures} of {ends[0].report.solves} solves fail, both ranks keep the last good "
         "one or go without; weights equal")  # fmt: skip


class Late(pl.Callback):
    """One rank is slow, and its clocks are wrong: an hour ahead, and ten times as fast."""

    def on_train_batch_start(self, *_) -> None:
        if dist.get_rank() == 1:
            time.sleep(0.1)


def late(strategy, how):
    clocks = time.time, time.perf_counter, time.monotonic
    if dist.get_rank() == 1:
        time.time = lambda: clocks[0]() + 3600
        time.perf_counter = lambda: 10 * clocks[1]() + 1e6
    try:
        return train(strategy, *how, steps=STEPS, callbacks=[Late()], compare_every=1)
    finally:
        time.time, time.perf_counter, time.monotonic = clocks


@pytest.mark.thread("own")
@pytest.mark.slow
@pytest.mark.fault("a slow rank whose clock is an hour off")
def test_a_slow_rank_with_a_wrong_clock(two, seen):
    ends, straight = two.run(late, "ddp", HOW["soap"]), two.run(train, "ddp", *HOW["soap"], steps=STEPS)
    for end, other in zip(ends, straight, strict=True):
        assert end.report.portable() == other.report.portable()
        for name, value in other.weights.items():
            assert torch.equal(end.weights[name], value)
    seen("weights bit for bit those of ranks with equal clocks: no decision is made by time")


# ---------------------------------------------------------------- processes of their own

LINE = ("--width", "32", "--steps", "60", "--every", "4", "--devices", "2")


def begun(folder):
    # Beside the folder, which may be full.
    return Started(folder.with_name(f"{folder.name} said"), "examples.restart", *LINE, "--folder", folder)


def ended(process, timeout=150):
    """The exit status, and what was said."""
    done = process.ended(timeout)
    return done.returncode, done.stdout + done.stderr


def until(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.process.is_alive(), ended(process)
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Final weights of two ranks that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    status, said = ended(begun(folder))
    assert status == 0, said
    return torch.load(folder / "weights.pt", weights_only=True)


def check_whole(folder, whole):
    for name, value in torch.load(folder / "weights.pt", weights_only=True).items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.thread("own")
@pytest.mark.slow
@pytest.mark.fault("kill -9 of one rank under torchrun --max-restarts")
def test_torchrun_restarts_from_the_last_checkpoint(whole, seen, tmp_path):
    # Restarted ranks would find dead ones in torchrun's store; the doctor gives them one of their own.
    doctor = ("--no-python", str(Path(sys.executable).parent / "lightning-so"), "doctor", "--devices", "2", "--")
    # The rank that is left can save nothing alone: torchrun need not wait for it for half a minute.
    torchrun = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "--shutdown-timeout", "4")
    line = (*torchrun, *doctor, sys.executable, "-m", "examples.restart", *LINE, "--folder", tmp_path)
    process = Started(tmp_path / "said", "torch.distributed.run", *line)
    until(tmp_path / "step=12.ckpt", process)
    _, second = Path(f"/proc/{process.process.pid}/task/{process.process.pid}/children").read_text().split()
    os.kill(int(second), signal.SIGKILL)
    status, said = ended(process)
    assert status == 0, said
    step = max(map(int, re.findall(r"Restored all states from the checkpoint at .*step=(\d+)", said)))
    assert 12 <= step < 60
    check_whole(tmp_path, whole)
    seen(f"torchrun starts both ranks again, they go on from step {step}, and end bit for bit as if nothing had been")


@pytest.mark.thread("Lightning-AI/pytorch-lightning#21406")
@pytest.mark.slow
@pytest.mark.fault("a signal to the one process that Lightning has started the others from")
def test_a_signal_to_the_first_process_alone(whole, seen, tmp_path):
    process = begun(tmp_path)
    until(tmp_path / "step=8.ckpt", process)
    os.kill(process.process.pid, signal.SIGTERM)
    status, said = ended(process, 60)
    assert status == 143, said
    assert "signal 15 at step" in said
    status, said = ended(begun(tmp_path))
    assert status == 0, said
    check_whole(tmp_path, whole)
    seen("both save at the same step, exit status 143; run again, it ends bit for bit as if nothing had been")


@pytest.mark.thread("Lightning-AI/pytorch-lightning#688")
@pytest.mark.slow
@pytest.mark.fault("a full disk while saving")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk(whole, seen, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=10m", "none", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        process = begun(disk)
        until(disk / "step=4.ckpt", process)
        (disk / "others").write_bytes(b"0" * os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize)
        began = time.monotonic()
        status, said = ended(process, 120)
        seconds = time.monotonic() - began
        assert status != 0
        assert "No space left on device" in said
        left = checkpoints.listed(disk)
        checkpoints.check(left[-1])
        (disk / "others").unlink()
        status, said = ended(begun(disk))
        assert status == 0, said
        assert not list(disk.glob("*.partial"))
        check_whole(disk, whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    seen(f"both ranks end within {seconds:.0f} s, the error says 'No space left on device'; {left[-1].name} is whole, "
         "and with room again the run ends bit for bit as if nothing had been")  # fmt: skip
