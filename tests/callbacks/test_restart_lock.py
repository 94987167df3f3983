"""`Restartable`'s hold on its folder: one training at a time, and a dead one's is taken over.

Two jobs that go on from each other's checkpoints: Lightning-AI/pytorch-lightning#12369.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import LambdaCallback

from lightning_so import ConfigError, Restartable, StateError
from lightning_so.callbacks.restart import lock
from lightning_so.callbacks.restart.lock import Lock
from tests.support.trainings import train

PLAIN = (None, (torch.optim.SGD, {"lr": 0.1}))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Beats by the millisecond."""
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def left(folder, **other):
    """The lock of a process that has ended without giving it back."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    who = {**lock._process(ended.pid), "secret": "theirs", **other}
    ended.wait()
    (folder / lock.NAME).write_text(json.dumps(who))
    return who


def test_a_second_fit_in_the_same_folder_is_refused_and_the_first_goes_on(tmp_path):
    """A job that is submitted twice: the second would go on from the first one's weights."""
    said = []

    def other(trainer, *_):
        if trainer.global_step == 5:
            again = Restartable(tmp_path, every=2)
            with pytest.raises(ConfigError) as error:
                train("one", *PLAIN, steps=8, callbacks=[again], resume=again.newest())
            said.append(str(error.value))

    straight = train("one", *PLAIN, steps=10)
    second = LambdaCallback(on_train_batch_end=other)
    end = train("one", *PLAIN, steps=10, callbacks=[Restartable(tmp_path, every=2), second])
    assert len(said) == 1
    assert "the folder is held by another fit of this process" in said[0]
    assert "give this training another folder, or end that one first" in said[0]
    for name, value in straight.weights.items():
        assert torch.equal(end.weights[name], value)
    assert not (tmp_path / lock.NAME).exists()


def test_a_second_fit_after_the_first_has_the_folder(tmp_path):
    train("one", *PLAIN, steps=2, callbacks=[Restartable(tmp_path, every=2)])
    restartable = Restartable(tmp_path, every=2)
    train("one", *PLAIN, steps=4, callbacks=[restartable], resume=restartable.newest())


@pytest.mark.fault("a second job in the folder of one that runs")
def test_another_process_that_beats_is_refused_and_one_that_is_gone_is_taken_over(seen, tmp_path, capsys):
    ready, write = os.pipe()
    if not (holder := os.fork()):
        os.write(write, bytes(str(Lock(tmp_path).take()), "ascii"))
        time.sleep(600)
    try:
        assert os.read(ready, 100) == b"(None, None)"
        with pytest.raises(ConfigError, match="the folder is held by process"):
            train("one", *PLAIN, steps=2, callbacks=[Restartable(tmp_path)])
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(ready)
        os.close(write)
    train("one", *PLAIN, steps=2, callbacks=[Restartable(tmp_path)])
    assert f"was held by process {holder} on" in (out := capsys.readouterr().out)
    assert ", which is gone; this training takes it over" in out
    seen("refused by name, with host and process; once that one is killed its lock is taken over, which is said")


def test_a_process_that_nobody_has_asked_for_its_end_is_gone(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    who = {**lock._process(child.pid), "secret": "theirs"}
    assert who["began"] is not None
    assert lock._dead(who) is None
    child.kill()
    end = time.monotonic() + 30
    while lock._began(child.pid) is not None and time.monotonic() < end:
        time.sleep(0.005)
    assert lock._dead(who) == "is gone"
    child.wait()


def test_a_process_with_a_number_that_has_come_again_is_another(tmp_path):
    who = {**lock._process(os.getppid()), "secret": "theirs"}
    assert lock._dead(who) is None
    assert lock._dead({**who, "began": "1"}) == "is gone"


def test_an_owner_on_another_host_is_watched_until_it_beats(tmp_path):
    left(tmp_path, host="far")
    end = threading.Event()

    def beat():
        while not end.wait(0.02):
            os.utime(tmp_path / lock.NAME)

    other = threading.Thread(target=beat)
    other.start()
    try:
        holder, over = Lock(tmp_path).take()
    finally:
        end.set()
        other.join()
    assert holder.endswith("on far")
    assert over is None


def test_an_owner_on_another_host_that_does_not_beat_is_taken_over(tmp_path, capsys):
    who = left(tmp_path, host="far", job="12")
    mine = Lock(tmp_path)
    said = f"SLURM job 12, process {who['pid']} on far"
    assert mine.take() == (None, f"{said}, which has not been seen for 0.2 s")
    assert f"is held by {said}; watching up to 0.2 s whether it lives" in capsys.readouterr().out
    mine.release()
    assert not mine.path.exists()


def test_processes_of_another_name_space_are_not_judged_by_their_numbers(tmp_path):
    who = left(tmp_path, space=["other", "other"])
    assert lock._dead(who) is None


@pytest.mark.parametrize(
    ("job", "start", "dead"),
    [("77", 0, "was requeued, and is now this one"), ("77", 1, None), ("77", 2, None), ("78", 0, None)],
)
def test_a_requeued_job_has_its_folder_on_any_host(tmp_path, monkeypatch, job, start, dead):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert lock._dead(left(tmp_path, host="far", job=job, start=start)) == dead


def test_tasks_of_an_array_are_jobs_of_their_own(tmp_path, monkeypatch):
    for name, value in (("SLURM_JOB_ID", "80"), ("SLURM_ARRAY_JOB_ID", "77"), ("SLURM_ARRAY_TASK_ID", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert lock._dead(left(tmp_path, host="far", job="77_4", start=0)) is None
    assert lock._dead(left(tmp_path, host="far", job="77_3", start=0)) is not None


def test_a_lock_that_says_nothing_is_watched(tmp_path):
    (tmp_path / lock.NAME).write_text('{"secret"')
    mine = Lock(tmp_path)
    assert mine.take() == (None, "an unknown training, which has not been seen for 0.2 s")
    mine.release()


def test_of_two_who_take_over_at_once_one_finds_out(tmp_path):
    left(tmp_path)
    first, second = Lock(tmp_path), Lock(tmp_path)
    # The second is quicker, between the first one's look and its deed.
    replace = first._replace
    first._replace = lambda: (second._replace(), replace())
    first.take()
    assert first.ours()
    assert not second.ours()
    second.release()
    assert first.ours()
    first.release()


@pytest.mark.parametrize("every", [0, 3])
@pytest.mark.fault("a training that was asleep, and whose folder another one has taken")
def test_who_has_lost_the_folder_writes_nothing_and_ends(seen, tmp_path, every):
    def taken(trainer, *_):
        if trainer.global_step == 2:
            left(tmp_path, host="far")
            # Its own beat finds out where nothing is to be saved.
            time.sleep(0.0 if every else 0.2)

    with pytest.raises(StateError, match=r"is not this training's any more.*another training has taken it"):
        train(
            "one",
            *PLAIN,
            steps=6,
            callbacks=[Restartable(tmp_path, every=every), LambdaCallback(on_train_batch_end=taken)],
        )
    assert not list(tmp_path.glob("step=*"))
    assert json.loads((tmp_path / lock.NAME).read_text())["secret"] == "theirs"
    seen("it finds out at its next beat, and before it writes: StateError on all ranks, nothing is written over")


class Broken(pl.Callback):
    """Raises, where a fit begins or in its midst."""

    def __init__(self, where):
        setattr(self, where, self._raise)

    def _raise(self, *_):
        raise ArithmeticError


@pytest.mark.parametrize("where", ["on_fit_start", "on_train_batch_end"])
def test_a_fit_that_raises_gives_the_folder_back(tmp_path, where):
    with pytest.raises(ArithmeticError):
        train("one", *PLAIN, steps=4, callbacks=[Restartable(tmp_path), Broken(where)])
    assert not (tmp_path / lock.NAME).exists()


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    # Not even root can write there.
    with pytest.raises(ConfigError, match=r"Restartable\(folder='/proc/runs'\): nothing can be written there"):
        train("one", *PLAIN, steps=2, callbacks=[Restartable("/proc/runs")])


def told(folder):
    """What a rank is told of a folder that another training has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "BEAT", 0.02)
        patch.setattr(lock, "PATIENCE", 0.2)
        if dist.get_rank() == 0:
            lock._HELD.add("theirs")
        try:
            train("ddp", *PLAIN, steps=4, callbacks=[Restartable(folder)])
        except ConfigError as error:
            return str(error)
        finally:
            lock._HELD.discard("theirs")
    return "nothing"


def test_all_ranks_are_refused_together_and_have_one_lock(two, tmp_path):
    left(tmp_path)
    for said in two.run(told, tmp_path):
        assert "the folder is held by another fit of this process" in said
    (tmp_path / lock.NAME).unlink()
    assert two.run(told, tmp_path) == ["nothing"] * 2
    assert not (tmp_path / lock.NAME).exists()
