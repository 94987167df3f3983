"""Signals that only set a flag: nothing is saved, sent or stopped inside a handler."""

import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

from lightning_so.errors import ConfigError


class Flags:
    """Holds signals back, then notes them, then leaves everything as it was.

    A signal that is blocked stays pending, so that none is lost between the start of a process (`env --block-signal=`)
    and `catch`. Threads that were there before do not block it, and it may come by way of one: then it is noted at
    once. Handlers are those of the main thread, as Python wants it.

    Attributes:
        received: The number of the signal that has come, the largest of several; 0 for none.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Look the names up.

        Args:
            names: As "SIGUSR1".

        Raises:
            ConfigError: If one is no signal that a process can catch.
        """
        known = {each.name: each for each in signal.Signals if each.name not in ("SIGKILL", "SIGSTOP")}
        wrong = [name for name in names if name not in known]
        if isinstance(names, str) or wrong or not names:
            raise ConfigError(
                f"Restartable(signals={names!r}): signals must be names of signals that can be caught, such as "
                f"('SIGUSR1', 'SIGTERM')."
            )
        self.signals = {known[name] for name in names}
        self.received = 0
        self._mask: set[Any] | None = None
        self._theirs: dict[int, Any] = {}

    def hold(self) -> None:
        """Have signals wait.

        Raises:
            ConfigError: If this is not the main thread, whose handlers Python calls.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError(
                "Restartable: Python gives signals to the main thread alone, and fit runs in another one. Call "
                "trainer.fit from the main thread."
            )
        if self._mask is None:
            self._theirs = {each: signal.getsignal(each) for each in self.signals}
            self.take()
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)

    def take(self) -> None:
        """Put our handlers in the place of those that are there."""
        for each in self.signals:
            signal.signal(each, self._note)

    def catch(self) -> None:
        """Note signals from now on, those that have waited too."""
        self.take()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)

    def release(self) -> None:
        """Give handlers and mask back; a signal that nobody has answered goes to whom it would have gone without us."""
        for each in self._theirs:
            # Not one that somebody else has put there meanwhile.
            if signal.getsignal(each) == self._note:
                self._give_back(each)
        if self._mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            self._mask = None
        if self.received:
            number, self.received = self.received, 0
            os.kill(os.getpid(), number)

    def _note(self, number: int, frame: Any) -> None:
        if self._mask is not None:
            self.received = max(self.received, number)
            return
        # After a fit that has raised Lightning puts this one back, which it has found when the fit began.
        self._give_back(number)
        os.kill(os.getpid(), number)

    def _give_back(self, number: int) -> None:
        handler = self._theirs[number]
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)
