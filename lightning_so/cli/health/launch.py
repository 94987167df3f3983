"""How this process was started: by srun, by torchrun, or by nobody; and whether the Trainer would agree."""

import importlib
import os
import socket
from dataclasses import dataclass

from lightning_so.cli.health.finding import Finding, bad, good, odd
from lightning_so.strategies.names import LIGHTNINGS

#: Names of a SLURM job at which Lightning takes it for a shell, and starts its own processes.
SHELLS = ("bash", "interactive")


@dataclass(frozen=True)
class Launch:
    """Where this process stands among the others, as Lightning sees it.

    Attributes:
        by: "srun", "torchrun" or "a shell".
        rank: Of all processes.
        ranks: How many there are.
        local: The rank on this node.
        address: The host of rank 0.
        port: The port on it.
    """

    by: str
    rank: int
    ranks: int
    local: int
    address: str
    port: int


def seen() -> Launch:
    """The launch of this process, from Lightning's own cluster environments."""
    kinds = importlib.import_module(f"{LIGHTNINGS[0]}.plugins.environments")
    # A batch script has the variables of a job too, but those of a step only what srun has started.
    for by, kind, mark in (
        ("torchrun", kinds.TorchElasticEnvironment, "TORCHELASTIC_RUN_ID"),
        ("srun", kinds.SLURMEnvironment, "SLURM_STEP_ID"),
    ):
        if mark in os.environ:
            if by == "srun" and _unsaid():
                # Lightning raises there, and `check` says what to change.
                rank, ranks, local = (int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "NTASKS", "LOCALID"))
                return Launch(by, rank, ranks, local, address="an unknown address", port=0)
            it = kind()
            return Launch(by, it.global_rank(), it.world_size(), it.local_rank(), it.main_address, it.main_port)
    return Launch("a shell", 0, 1, 0, "127.0.0.1", kinds.LightningEnvironment().main_port)


def check(launch: Launch, devices: int | None, num_nodes: int | None) -> list[Finding]:
    """Whether the numbers of processes fit.

    Args:
        launch: This process's.
        devices: What `Trainer(devices=)` will be told; None to leave that out.
        num_nodes: What `Trainer(num_nodes=)` will be told.

    Returns:
        Findings.
    """
    name = f"rank {launch.rank} of {launch.ranks}, started by {launch.by}, rank 0 at {launch.address}:{launch.port}"
    return [good("launch", name), *_slurm(launch, devices, num_nodes), *_torchrun(launch, devices, num_nodes)]


def _slurm(launch: Launch, devices: int | None, num_nodes: int | None) -> list[Finding]:
    job = os.environ.get("SLURM_JOB_NAME")
    if "SLURM_JOB_ID" not in os.environ or launch.by == "torchrun":
        return []
    if job in SHELLS:
        return [bad("job name", f"SLURM_JOB_NAME={job}, which Lightning takes for a shell", "#SBATCH --job-name=train")]
    found = []
    if launch.by == "a shell":
        ranks = int(os.environ.get("SLURM_NTASKS", 1))
        told = "in a SLURM job, and not started by srun"
        if ranks == 1:
            found += [odd("srun", told, "srun lightning-so doctor ...")]
        else:
            waits = f"{told}: Lightning would wait for {ranks - 1} more processes"
            found += [bad("srun", waits, "srun python train.py, also in the batch script")]
    if _unsaid():
        found += [
            bad(
                "--ntasks-per-node",
                f"{launch.ranks} tasks without SLURM_NTASKS_PER_NODE, which Lightning asks for",
                f"#SBATCH --ntasks-per-node={devices or 'DEVICES'}",
            )
        ]
    for option, variable, argument, wanted in (
        ("--ntasks-per-node", "SLURM_NTASKS_PER_NODE", "devices", devices),
        ("--nodes", "SLURM_NNODES", "num_nodes", num_nodes),
    ):
        got = os.environ.get(variable)
        if got is not None and wanted is not None and int(got) != wanted:
            seen = f"{variable}={got}, and the Trainer has {argument}={wanted}"
            found += [bad(option, seen, f"#SBATCH {option}={wanted}, or Trainer({argument}={got})")]
    return found


def _unsaid() -> bool:
    """Whether srun was told how many tasks there are, and not how many a node has, which Lightning asks for."""
    return int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ


def _torchrun(launch: Launch, devices: int | None, num_nodes: int | None) -> list[Finding]:
    local, wanted = os.environ.get("LOCAL_WORLD_SIZE"), (devices or 1) * (num_nodes or 1)
    if launch.by != "torchrun":
        return []
    if devices is not None and (int(local or devices) != devices or launch.ranks != wanted):
        return [
            bad(
                "--nproc-per-node",
                f"{local} processes on this node and {launch.ranks} in all; the Trainer has devices={devices}, "
                f"num_nodes={num_nodes or 1}",
                f"torchrun --nnodes {num_nodes or 1} --nproc-per-node {devices}",
            )
        ]
    return []


def port(launch: Launch) -> list[Finding]:
    """Whether rank 0 can listen where the others will look for it.

    Args:
        launch: This process's.

    Returns:
        Findings, of rank 0; torchrun itself listens there, and has done so before.
    """
    if launch.rank or launch.by != "srun" or not launch.port:
        return []
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", launch.port))
        except OSError as error:
            free = launch.port + 1 if launch.port < 65_000 else 20_000
            return [bad("port", f"{launch.port} on {socket.gethostname()}: {error}", f"export MASTER_PORT={free}")]
    return [good("port", f"{launch.port} is free")]
