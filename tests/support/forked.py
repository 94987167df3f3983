"""Processes that are forked off one that has imported everything, once for a session: a new Python takes seconds.

What they start themselves as a Python is forked off them in turn: ranks by Lightning's launcher or by torchrun, phases
of a resume check. Their launchers are the real ones, and wait, signal and kill as ever; only the imports are missing.
"""

import inspect
import os
import runpy
import signal
import subprocess
import sys
import traceback
from multiprocessing import get_context
from pathlib import Path

from tests.support.peers import PEERS

ROOT = Path(__file__).parents[2]


def forking():
    """The context of `multiprocessing` that forks them."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preloaded"])
    return context


# ---------------------------------------------------------------- in such a process


def prepared() -> None:
    """Make this process one of those."""
    os.setsid()  # A signal to its group is none to the tests.
    os.chdir(ROOT)
    sys.path.append(str(PEERS))  # What was imported from there is looked up again by its metadata.
    subprocess.Popen._execute_child = execute
    os.execvp = become


def ours(line):
    """Whether a command is `python -m name`, or a program of the environment that is written in Python."""
    if line[0] == sys.executable:
        return line[1] == "-m"
    path = Path(line[0])
    return path.parent == Path(sys.executable).parent and path.read_bytes().startswith(f"#!{sys.executable}".encode())


def execute(self, *given, original=subprocess.Popen._execute_child):
    """What `subprocess.Popen` does to start a process."""
    of = dict(zip(list(inspect.signature(original).parameters)[1:], given, strict=True))
    line = [of["args"]] if isinstance(of["args"], str) else [os.fspath(word) for word in of["args"]]
    if of["shell"] or not ours(line):
        original(self, *given)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    self.pid = os.fork()
    if self.pid == 0:
        try:
            if of["start_new_session"]:
                os.setsid()
            if of["cwd"] is not None:
                os.chdir(of["cwd"])
            if of["env"] is not None:
                os.environ.clear()
                os.environ.update(of["env"])
            alone([of["p2cread"], of["c2pwrite"], of["errwrite"]])
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        become(line[0], line)
    self._child_created = True
    self._close_pipe_fds(*(of[name] for name in of if name.endswith(("read", "write"))))


def alone(pipes) -> None:
    """Take over the three pipes that are given, keep no other file open, and answer no signal as the parent does."""
    for number, pipe in enumerate(pipes):
        if pipe != -1:
            os.dup2(pipe, number)
    # Numbers stay taken: the parent's objects, of which this process has copies, close them some day.
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != nothing and os.path.exists(f"/proc/self/fd/{number}"):
            os.dup2(nothing, number)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def become(program, line, original=os.execvp) -> None:
    """What `os.execvp` does, without a new Python; the process ends with the program."""
    if not ours(line):
        original(program, line)
    code = 0
    try:
        if line[1:2] == ["-m"]:
            sys.argv = line[2:]
            runpy.run_module(line[2], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(line)
            runpy.run_path(line[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(name, arguments, environment, out, err) -> None:
    """What `python -m` does, in a process of its own."""
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)
    prepared()
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def answer(pipe, function, arguments, named) -> None:
    """Call a function, and send what it gives."""
    prepared()
    try:
        pipe.send((True, function(*arguments, **named)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))


# ---------------------------------------------------------------- in a test


class Started:
    """`python -m name arguments`, as it runs.

    Args:
        folder: Where it is written what the module prints.
        name: The module.
        arguments: Its arguments.
        environment: Variables that are set beside those of the tests.
    """

    def __init__(self, folder, name, *arguments, **environment) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.out, self.err = name, folder / "stdout.txt", folder / "stderr.txt"
        self.process = forking().Process(
            target=main, args=(name, [*map(str, arguments)], environment, self.out, self.err)
        )
        self.process.start()

    def ended(self, timeout):
        """Wait for it, and give what `subprocess.run` would."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise subprocess.TimeoutExpired(self.name, timeout)
        return subprocess.CompletedProcess(self.name, self.process.exitcode, self.out.read_text(), self.err.read_text())


def module(folder, name, *arguments, timeout=300):
    """Run `python -m name arguments` to its end; `Started` says of what."""
    return Started(folder, name, *arguments).ended(timeout)


def call(function, *arguments, timeout=300, **named):
    """What a function gives in a process of its own."""
    ours, theirs = forking().Pipe()
    process = forking().Process(target=answer, args=(theirs, function, arguments, named))
    process.start()
    assert ours.poll(timeout), f"{function.__name__} did not answer"
    well, found = ours.recv()
    process.join()
    assert well, found
    return found
