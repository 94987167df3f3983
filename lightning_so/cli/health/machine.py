"""This machine: versions, devices, backends, and one solve as the methods do it."""

import importlib.util
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version

import torch

from lightning_so.cli.health.finding import Finding, bad, good, odd
from lightning_so.cli.health.launch import Launch
from lightning_so.comm import available
from lightning_so.linalg.psd import eigenbasis, inverse

#: Rows of the factor that is solved: a small layer's.
SIDE = 256
#: Largest error of an inverse or a basis in float32, relative to the factor's own length.
ERROR = 1e-3


def versions() -> list[Finding]:
    """What is installed, as far as numbers depend on it."""
    found = {"python": platform.python_version()}
    for name in ("torch", "pytorch-lightning", "lightning", "lightning-so"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return [good("versions", ", ".join(f"{name} {number}" for name, number in found.items()))]


def device(launch: Launch, accelerator: str) -> torch.device:
    """Where this process would compute."""
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", launch.local % torch.cuda.device_count()) if gpu else torch.device("cpu")


def devices(launch: Launch, accelerator: str, wanted: int | None) -> list[Finding]:
    """Whether the devices are there.

    Args:
        launch: How this process was started.
        accelerator: "auto", "cpu" or "gpu".
        wanted: Devices of a node that the Trainer will ask for; None for as many as it has processes.

    Returns:
        Findings.
    """
    count = torch.cuda.device_count()
    if accelerator != "cpu" and torch.cuda.is_available():
        wanted = wanted or launch.local + 1
        names = f"{count} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
        if count < wanted:
            return [bad("devices", names, f"#SBATCH --gpus-per-node={wanted}, or Trainer(devices={count})")]
        return [good("devices", names)]
    driver = os.path.exists("/proc/driver/nvidia/version")
    if accelerator == "gpu" or (accelerator == "auto" and driver):
        why = "has no CUDA" if torch.version.cuda is None else "sees no device"
        told = f"no GPU: torch {torch.__version__} {why}; a driver is {'there' if driver else 'not loaded'}"
        next_move = "install a CUDA build of torch" if torch.version.cuda is None else "#SBATCH --gpus-per-node=..."
        return [bad("devices", told, f"{next_move}, or Trainer(accelerator='cpu')")]
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    told = f"CPU, {cores} cores, {threads} threads a process"
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    if threads * local > max(cores, local):
        return [odd("devices", f"{told}, {local} processes", f"export OMP_NUM_THREADS={max(1, cores // local)}")]
    return [good("devices", told)]


def backends(where: torch.device) -> list[Finding]:
    """Whether torch can exchange tensors from this device."""
    backend = backend_of(where)
    there = available(backend)
    chosen = {name: os.environ[name] for name in (f"{backend.upper()}_SOCKET_IFNAME",) if name in os.environ}
    if not there:
        return [bad("backend", f"torch was built without {backend}", "install one of torch's own builds")]
    absent = [each for each in chosen.values() if not _interfaces(each)]
    if absent:
        name = next(iter(chosen))
        have = ",".join(sorted(os.listdir("/sys/class/net"))) if os.path.isdir("/sys/class/net") else "unknown"
        return [bad("backend", f"{name}={absent[0]}, and this host has {have}", f"export {name}=<one of them>")]
    return [good("backend", ", ".join([backend, *(f"{name}={value}" for name, value in chosen.items())]))]


def backend_of(where: torch.device) -> str:
    """The backend that Lightning takes for a device."""
    return "nccl" if where.type == "cuda" else "gloo"


def _interfaces(value: str) -> bool:
    """Whether a host has an interface of those named; NCCL takes beginnings, and ^ for others than these."""
    if value.startswith("^") or not os.path.isdir("/sys/class/net"):
        return True
    names = value.lstrip("=").split(",")
    return any(here.startswith(name) for here in os.listdir("/sys/class/net") for name in names)


def solve(where: torch.device) -> tuple[list[Finding], float]:
    """An inverse and an eigenbasis of one factor, against the factor itself in float64.

    Args:
        where: The device.

    Returns:
        Findings, and the seconds that a second solve took.
    """
    rows = torch.randn(2 * SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    factor = (rows.T @ rows / len(rows))[None].to(where)
    damping, seconds = torch.tensor([1e-2], device=where), 0.0
    for _ in range(2):
        begin = time.perf_counter()
        inverted = inverse(factor, damping)
        values, basis, ok = eigenbasis(factor)
        error = torch.stack(
            [
                (inverted.value.double() @ (factor.double() + 1e-2 * torch.eye(SIDE, device=where))).sub_(
                    torch.eye(SIDE, device=where)
                ),
                (basis * values[:, None]).double() @ basis.double().mT - factor.double(),
            ]
        )
        worst = float(error.abs().max())
        seconds = time.perf_counter() - begin
    told = f"inverse and eigenbasis of {SIDE} x {SIDE} on {where}, {1e3 * seconds:.0f} ms, error {worst:.1g}"
    if not (inverted.ok and ok and worst < ERROR):
        return [bad("solve", told, "run it again on another node; if it fails there too, reinstall torch")], seconds
    return [good("solve", told)], seconds


def optional() -> list[Finding]:
    """What is not installed, and only some need."""
    names = {"jsonargparse": "cli", "rich": "progress", "matplotlib": "plots", "submitit": "slurm", "deepspeed": ""}
    here = [name for name in names if importlib.util.find_spec(name)]
    return [good("optional", ", ".join(here) or "none")]
