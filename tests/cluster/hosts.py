"""Hosts for tests: network namespaces of one machine, each with a cable to a switch in a namespace of its own.

    with joined(2, "1gbit") as hosts:
        subprocess.run(hosts[0].command("ping", "-c1", hosts[1].address))

They have no names, so that two runs cannot clash; nothing of them is in the machine's own namespace, so that no packet
can leave. A namespace is held by a process that ends with its starter, and is gone with the last process in it.
"""

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

#: What `setns` calls a network namespace.
CLONE_NEWNET = 0x40000000
#: Of Debian: `ip` and `tc`.
PACKAGE = "iproute2"


@dataclass(frozen=True)
class Host:
    """One host; it can be sent to other processes.

    Attributes:
        number: From 0.
        pid: The process that holds its namespace.
        switch: The process that holds the switch's.
    """

    number: int
    pid: int
    switch: int

    @property
    def address(self) -> str:
        """Where the other hosts find it."""
        return f"10.77.0.{self.number + 1}"

    def command(self, *words: str) -> list[str]:
        """The command that runs another on this host."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words]

    def enter(self) -> None:
        """Put this process there; threads that run already stay where they are."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self.pid}/ns/net") as space:
            if libc.setns(space.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def cut(self) -> None:
        """Take the cable out: the link goes down."""
        told(self.switch, "ip", f"link set p{self.number} down")

    def heal(self) -> None:
        """Put it back."""
        told(self.switch, "ip", f"link set p{self.number} up")

    def drop(self) -> None:
        """Lose all packets; the link stays up."""
        told(self.switch, "ip", f"link set p{self.number} nomaster")

    def undrop(self) -> None:
        """Lose none."""
        told(self.switch, "ip", f"link set p{self.number} master switch")

    def sent(self) -> int:
        """Bytes that have left through its cable, headers included."""
        return sent_through("eth0", self.pid)


def sent_through(interface: str, pid: int | str = "self") -> int:
    """Bytes that have left through an interface of the namespace of a process."""
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    counts = dict(line.split(":") for line in lines)
    return int({name.strip(): of for name, of in counts.items()}[interface].split()[8])


@contextmanager
def joined(count: int = 2, rate: str = "1gbit") -> Iterator[list[Host]]:
    """Hosts on one switch; when they are left, all that runs on them is killed.

    Args:
        count: How many.
        rate: Of every cable, in both directions, as `tc` writes it.

    Yields:
        The hosts.

    Raises:
        OSError: If it cannot be done here; says what `unshare`, `ip` or `tc` said.
    """
    with ExitStack() as stack:
        switch = stack.enter_context(namespace())
        hosts = [Host(number, stack.enter_context(namespace()), switch) for number in range(count)]
        told(switch, "ip", "link add switch type bridge forward_delay 0", "link set switch up")
        for host in hosts:
            port = f"p{host.number}"
            cable = f"link add {port} type veth peer name eth0 netns {host.pid}"
            told(switch, "ip", cable, f"link set {port} master switch up")
            told(host.pid, "ip", "link set lo up", f"addr add {host.address}/24 dev eth0", "link set eth0 up")
            for pid, device in ((switch, port), (host.pid, "eth0")):
                # A token bucket holds no less than the rate gives between two ticks of the slowest kernel.
                told(pid, "tc", f"qdisc replace dev {device} root tbf rate {rate} burst 256kb latency 50ms")
        yield hosts


@contextmanager
def namespace() -> Iterator[int]:
    """A network namespace; gives the process that holds it, until its input is closed: it ends when we do."""
    held = ["unshare", "--net", "sh", "-c", "echo; exec cat"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(held, **pipes) as holder:
        if not holder.stdout.readline():
            raise OSError(f"no network namespace: {holder.stderr.read().decode().strip()}")
        try:
            yield holder.pid
        finally:
            for pid in inside(holder.pid):
                if pid != holder.pid:
                    os.kill(pid, signal.SIGKILL)


def inside(pid: int) -> list[int]:
    """The processes in the network namespace of one."""
    space, found = os.readlink(f"/proc/{pid}/ns/net"), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "ns" / "net") == space:
                found.append(int(process.name))
        except OSError:
            pass  # It has ended meanwhile.
    return found


def told(pid: int, program: str, *lines: str) -> None:
    """Run lines of `ip` or `tc` in the namespace of a process."""
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", program, "-batch", "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{program} in a network namespace ({'; '.join(lines)}): {done.stderr.strip()}")


def lacking() -> str | None:
    """What this machine lacks for hosts, or None; `ip` and `tc` are installed where they can be."""
    if os.geteuid() != 0:
        return "network namespaces are made by root alone"
    if not (shutil.which("ip") and shutil.which("tc")) and shutil.which("apt-get"):
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", PACKAGE]
        subprocess.run(install, capture_output=True, timeout=120)
    absent = [program for program in ("ip", "tc", "unshare", "nsenter") if shutil.which(program) is None]
    if absent:
        return f"{' and '.join(absent)} cannot be had: install the packages {PACKAGE} and util-linux"
    try:
        with joined(1):
            return None
    except OSError as error:
        return str(error)


@pytest.fixture(scope="module")
def network():
    """Makes hosts that reach each other alone, `network(2, "1gbit")`; the end of the module takes all of them down."""
    if reason := lacking():
        pytest.skip(reason)
    with ExitStack() as stack:
        yield lambda count=2, rate="1gbit": stack.enter_context(joined(count, rate))
