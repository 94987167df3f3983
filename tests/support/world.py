"""A pool of gloo ranks that is started once: `run(function, ranks, ...)` gives the results of all ranks."""

import faulthandler
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import traceback
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist

from tests.support import noted
from tests.support.forked import forking
from tests.support.peers import PEERS

CALLS = 30
"""After so many the ranks are started anew: threads of process groups that nobody uses any more wake up every 10 ms."""

CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)


class Crashed(AssertionError):
    """Native code has ended a rank."""


class World:
    """Ranks 0 .. size-1, each waiting for (function, arguments); a function may be any importable one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.start()

    def start(self) -> None:
        context = forking()
        self.file, self.broken, self.calls = tempfile.mktemp(), False, 0
        self.pipes, self.processes = [], []
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, self.size, self.file, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function, *arguments, **named):
        """Call the function on every rank; the results, by rank. After a failure all ranks are started anew.

        What native code crashes is run once more, and told: the package has none of its own. Seen once: malloc found a
        rank's heap corrupted, and it is not known by whom.
        """
        try:
            return self._run(function, arguments, named)
        except Crashed as crash:
            warnings.warn(f"{crash}; it is run once more", stacklevel=2)
            return self._run(function, arguments, named)

    def _run(self, function, arguments, named):
        if self.broken or self.calls == CALLS:
            self.kill()
            self.start()
        self.broken, self.calls = True, self.calls + 1
        for pipe in self.pipes:
            pipe.send((function, arguments, named))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            assert pipe.poll(120), f"rank {rank} of {function.__name__} did not answer"
            try:
                answers.append(pipe.recv())
            except EOFError:
                self._tell(function)
        for rank, (ok, value, _) in enumerate(answers):
            assert ok, f"rank {rank}:\n{value}"
        self.broken = False
        noted.add(answers[0][2])
        return [value for _, value, _ in answers]

    def _tell(self, function):
        """Raise what is known of ranks that have ended."""
        multiprocessing.connection.wait([process.sentinel for process in self.processes], 10)
        codes = {rank: process.exitcode for rank, process in enumerate(self.processes) if process.exitcode is not None}
        crashed = any(-code in CRASHES for code in codes.values())
        raise (Crashed if crashed else AssertionError)(
            f"ranks of {function.__name__} ended; exit codes by rank: {codes}"
        )

    def close(self) -> None:
        if not self.broken:
            for pipe in self.pipes:
                pipe.send(None)
            for process in self.processes:
                process.join(10)
        self.kill()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def serve(rank, size, file, pipe) -> None:
    """One rank: serve calls until None comes."""
    faulthandler.enable()  # Says where a rank was that a signal ends.
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.append(str(PEERS))  # What was imported from there is looked up again by its metadata.
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    while (call := pipe.recv()) is not None:
        function, arguments, named = call
        noted.taken()  # What a call before it has left and not finished.
        try:
            found = function(*arguments, **named)
            pipe.send((True, found, noted.taken()))
        except BaseException:
            pipe.send((False, traceback.format_exc(), []))
    dist.destroy_process_group()
