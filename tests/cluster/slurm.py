"""A SLURM cluster of two nodes on this machine, from Debian's packages: the real daemons, no root squashed."""

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
NODES, CPUS = 2, 4
#: What a job's user may not wait for: SLURM's own two minutes before a requeued job starts (cred_expire), and its slow
#: rounds. Everything else is as in a cluster with preemption by partition.
CONFIGURATION = """
ClusterName=lso
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
FirstJobId={first_job}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MessageTimeout=30
SlurmdTimeout=60
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} RealMemory=8000
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
HOSTS = Path("/etc/hosts")


def missing() -> str | None:
    """Why there can be no cluster here; None if there can be one."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root here"
    if all(map(shutil.which, PROGRAMS)):
        return None
    if shutil.which("apt-get") is None:
        return f"{', '.join(PROGRAMS)} are not installed, and there is no apt-get"
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for commands in ([install], [["apt-get", "update", "-qq"], install]):
        done = [subprocess.run(each, env=environment, capture_output=True, text=True) for each in commands]
        if done[-1].returncode == 0:
            return None
    return f"apt-get cannot install {', '.join(PACKAGES)}: {done[-1].stderr.strip()[-300:]}"


class Cluster:
    """Daemons, and the commands of a user."""

    def __init__(self, folder: Path) -> None:
        """Start munged, the controller and the nodes, and wait until all nodes are idle."""
        self.folder = folder
        base = 17_000 + os.getpid() % 1000 * 10
        (folder / "state").mkdir(parents=True)
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.configuration = folder / "slurm.conf"
        self.configuration.write_text(
            CONFIGURATION.format(
                folder=folder,
                port=base,
                first=base + 1,
                last=base + NODES,
                nodes=NODES,
                cpus=CPUS,
                # By which Lightning chooses a port.
                first_job=1000 + os.getpid() % 4000,
            )
        )
        self.environment = {**os.environ, "SLURM_CONF": str(self.configuration)}
        self.hosts = HOSTS.read_text()
        HOSTS.write_text(self.hosts + "".join(f"127.0.0.1 n{node + 1}\n" for node in range(NODES)))
        munge = [f"--{name}={folder}/munge.{end}" for name, end in (("key-file", "key"), ("socket", "socket"))]
        extra = [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/seed"]
        self.run("munged", "--force", *munge, *extra)
        self.run("slurmctld", "-f", str(self.configuration))
        for node in range(NODES):
            self.start(f"n{node + 1}")
        self.until(lambda: self.idle() == NODES, 30)

    def idle(self) -> int:
        """How many nodes wait for jobs."""
        return int(self.run("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D").strip() or 0)

    def start(self, node: str) -> None:
        """Start the daemon of a node."""
        self.run("slurmd", "-f", str(self.configuration), "-N", node)

    def lose(self, node: str) -> None:
        """A node goes down: its daemon and all that it runs are gone, and then the controller is told so."""
        daemon = int((self.folder / f"slurmd-{node}.pid").read_text())
        for pid in {daemon, *_of(node, self.configuration)}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # By itself the controller would find out after SlurmdTimeout.
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def run(self, *command: str) -> str:
        """A command's output; an error with it if it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def until(self, condition, seconds: float) -> None:
        """Wait for something, with the controller's last words if it does not come."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError((self.folder / "slurmctld.log").read_text()[-3000:])
            time.sleep(0.2)

    def submit(self, *arguments: str, **variables: str) -> str:
        """Submit a job from the repository's root; its id."""
        environment = {**self.environment, **variables}
        done = subprocess.run(["sbatch", "--parsable", *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What the controller says of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", number)))

    def ended(self, *numbers: str, seconds: float = 300) -> list[dict[str, str]]:
        """Jobs, once they are in the queue no more."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: all(self.job(number)["JobState"] in over for number in numbers), seconds)
        return [self.job(number) for number in numbers]

    def stop(self) -> None:
        """Cancel what runs, stop the daemons, give /etc/hosts back."""
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True, timeout=60)
        files = (*self.folder.glob("slurmd-*.pid"), self.folder / "slurmctld.pid", self.folder / "munged.pid")
        daemons = [int(file.read_text()) for file in files if file.exists()]
        for how in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + 5
            for pid in filter(_runs, daemons):
                with suppress(ProcessLookupError):
                    os.kill(pid, how)
            while any(map(_runs, daemons)) and time.monotonic() < end:
                time.sleep(0.1)
        HOSTS.write_text(self.hosts)


def _of(node: str, configuration: Path) -> list[int]:
    """The processes of a node's jobs, and those that look after them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (process / "environ").read_bytes().split(b"\0")
            if {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={configuration}".encode()} <= {*variables}:
                found.append(int(process.name))
    # A step is looked after by a daemon of its own, which has started the tasks.
    parents = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in found}
    return [*found, *(pid for pid in parents if Path(f"/proc/{pid}/comm").read_text().startswith("slurmstepd"))]


def _runs(pid: int) -> bool:
    """Whether there is a process, not only what is left of one for a parent that does not ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The cluster, for all tests of a session."""
    if why := missing():
        pytest.skip(why)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()
