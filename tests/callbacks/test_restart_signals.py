"""`Restartable` and signals: they wait, are noted, and go where they went before."""

import os
import signal
import threading
import time

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader

from lightning_so import SOAP, ConfigError, Restartable
from lightning_so.callbacks.restart.flags import Flags
from tests.support.trainings import Module, train

HOW = (SOAP(start=2, period=4), (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}))


@pytest.fixture
def heard():
    """The numbers of the signals that have come to somebody who listened before us."""
    found, numbers = [], (signal.SIGUSR1, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: found.append(number)) for number in numbers]
    yield found
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def come(condition, seconds=10):
    """Whether something that another thread brings about has come."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def test_signals_wait_until_they_are_caught_and_go_on_if_nobody_answers(heard):
    # A thread that was there before does not hold them back: it may come by way of that, and a little later.
    stop = threading.Event()
    threading.Thread(target=stop.wait, daemon=True).start()
    flags = Flags(["SIGUSR1"])
    flags.hold()
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert come(lambda: flags.received == signal.SIGUSR1)
        flags.catch()
        assert (heard, flags.received) == ([], signal.SIGUSR1)
    finally:
        flags.release()
        stop.set()
    assert come(lambda: heard == [signal.SIGUSR1])
    os.kill(os.getpid(), signal.SIGUSR1)
    assert come(lambda: heard == [signal.SIGUSR1] * 2)


def test_a_blocked_signal_stays_pending_and_no_thread_answers_it(heard):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        flags = Flags(["SIGUSR1"])
        flags.hold()
        assert (heard, flags.received) == ([], 0)
        flags.catch()
        assert (heard, flags.received) == ([], signal.SIGUSR1)
        flags.received = 0
        flags.release()
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])


class Raising(pl.Callback):
    """Breaks off."""

    def on_train_batch_end(self, *_) -> None:
        raise ArithmeticError


def test_after_a_training_that_raises_signals_go_where_they_went(heard, tmp_path):
    with pytest.raises(ArithmeticError):
        train("one", *HOW, callbacks=[Raising(), Restartable(tmp_path)])
    sent = [signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM]
    for count, number in enumerate(sent, start=1):
        os.kill(os.getpid(), number)
        assert come(lambda: heard == sent[:count])  # noqa: B023


def bare(*callbacks, **named):
    """A Trainer that prints and writes nothing."""
    return pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **named,
    )


def test_lightnings_handlers_answer_no_signal_before_the_training_either(tmp_path):
    answers = []

    def look(*_):
        answers.extend(getattr(signal.getsignal(each), "__self__", None) for each in (signal.SIGUSR1, signal.SIGTERM))

    bare(Restartable(tmp_path), LambdaCallback(on_sanity_check_end=look), max_steps=1).fit(BoringModel())
    first, second = answers
    assert isinstance(first, Flags)
    assert first is second


def test_another_thread_is_refused():
    said = []

    def other():
        with pytest.raises(ConfigError, match="main thread"):
            Flags(["SIGUSR1"]).hold()
        said.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert said


@pytest.mark.parametrize("signals", ["SIGUSR1", (), ("SIGKILL",), ("USR1",)])
def test_wrong_signals_are_refused(tmp_path, signals):
    with pytest.raises(ConfigError, match="signals must be names"):
        Restartable(tmp_path, signals=signals)


def test_processes_that_get_no_signals_are_refused(tmp_path):
    trainer = bare(Restartable(tmp_path), strategy="ddp_fork", devices=1)
    # By name: what is raised in another process comes as text.
    with pytest.raises(Exception, match="processes that Lightning forks or spawns get no signal"):
        trainer.fit(Module("one", HOW[1]), DataLoader(range(2)))
