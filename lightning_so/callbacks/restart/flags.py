"""Signals that only set a flag: nothing is saved, sent or stopped inside a handler."""

import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

from lightning_so.core.errors import ConfigError


class Flags:
    """Holds signals back, then notes them, then leaves everything as it was.

    A signal that is blocked stays pending, so that none is lost between the start of a process (`env --block-signal=`)
    and `catch`. Handlers are those of the main thread, as Python wants it.

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
        self._before: set[Any] | None = None
        self._handlers: dict[signal.Signals, Any] = {}

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
        if self._before is None:
            self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)

    def catch(self) -> None:
        """Note signals from now on, those that have waited too."""
        self._handlers = {each: signal.signal(each, self._note) for each in self.signals}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)

    def release(self) -> None:
        """Give handlers and mask back; a signal that nobody has answered goes to whom it would have gone without us."""
        for each, handler in self._handlers.items():
            # After a fit that has ended well Lightning has given back what was there before the fit.
            if signal.getsignal(each) == self._note:
                signal.signal(each, handler if handler is not None else signal.SIG_DFL)
        self._handlers = {}
        if self._before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
            self._before = None
        if self.received:
            number, self.received = self.received, 0
            os.kill(os.getpid(), number)

    def _note(self, number: int, frame: Any) -> None:
        self.received = max(self.received, number)
