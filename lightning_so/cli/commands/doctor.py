"""The command `lightning-so doctor`."""

import os
import socket
import sys
from pathlib import Path

from lightning_so.callbacks.restart.place import local
from lightning_so.cli.health import launch as launches
from lightning_so.cli.health.finding import BAD, Finding, bad
from lightning_so.cli.health.table import shown
from lightning_so.errors import ConfigError, check_choice, check_range

ACCELERATORS = ("auto", "cpu", "gpu")


def command(
    devices: int | None = None,
    num_nodes: int | None = None,
    accelerator: str = "auto",
    folder: Path | None = None,
    checkpoint: Path | None = None,
    timeout: float = 60.0,
    overrides: list[str] | None = None,
) -> int:
    """Look at the machines and at the launch before a training starts on them, and say what to change.

    Alone, or on the launch itself: `srun lightning-so doctor`, `torchrun --no-python ... lightning-so doctor`. With a
    command behind "--" it becomes that command where nothing failed, in the same process, so that a signal that came
    meanwhile is not lost: `srun env --block-signal=USR1,TERM lightning-so doctor --folder runs/a -- python train.py`.
    Exit status: 0 nothing failed, 1 something did, 2 could not run.

    Examples:
        lightning-so doctor
        srun lightning-so doctor --devices 4 --num-nodes 2 --folder runs/a
        torchrun --no-python --nproc-per-node 4 lightning-so doctor -- python train.py

    Args:
        devices: What Trainer(devices=) will be told.
        num_nodes: What Trainer(num_nodes=) will be told.
        accelerator: What Trainer(accelerator=) will be told: auto, cpu or gpu.
        folder: Where checkpoints will be.
        checkpoint: A checkpoint to go on from.
        timeout: Seconds to wait for other ranks.
        overrides: The command to become.

    Returns:
        The exit status.

    Raises:
        ConfigError: If an argument is wrong, or the command cannot be started.
    """
    from lightning_so.cli.health import folder as disk
    from lightning_so.cli.health import machine, together
    from lightning_so.comm import meeting

    check_choice("doctor", "accelerator", accelerator, ACCELERATORS)
    check_range("doctor", "timeout", timeout, 1, 3600)
    folder = None if folder is None else local("doctor", folder)
    launch = launches.seen()
    where = machine.device(launch, accelerator)
    found = [
        *launches.check(launch, devices, num_nodes),
        *machine.versions(),
        *machine.devices(launch, accelerator, devices),
        *machine.backends(where),
        *machine.optional(),
        *launches.port(launch),
        *disk.check(folder),
        *(disk.checkpoint(checkpoint) if launch.rank == 0 else ()),
    ]
    if any(each.state == BAD for each in found):
        # The others would be waited for in vain: srun and torchrun end them with this process.
        return _told(found, f"rank {launch.rank} on {socket.gethostname()}")
    solved, seconds = machine.solve(where)
    try:
        with meeting(
            launch.address,
            launch.port,
            launch.rank,
            launch.ranks,
            backend=machine.backend_of(where),
            patience=timeout,
        ) as comm:
            found = together.merged(comm, [*found, *solved])
            if launch.ranks > 1:
                found += together.check(comm, folder, seconds)
            if launch.by == "torchrun":
                os.environ.update(together.apart(comm))
    except (RuntimeError, OSError) as error:
        seen = f"{str(error).splitlines()[0]} ({launch.address}:{launch.port}, within {timeout:g} s)"
        move = (
            "look for a rank that has ended before; else set MASTER_ADDR, and GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME"
        )
        return _told([*found, bad("meeting", seen, move)], f"rank {launch.rank} on {socket.gethostname()}")
    if launch.rank == 0 or not overrides:
        status = _told(found, f"{launch.ranks} rank(s)", quiet=launch.rank > 0)
    else:
        status = int(any(each.state == BAD for each in found))
    if status or not overrides:
        return status
    sys.stdout.flush()
    try:
        os.execvp(overrides[0], overrides)
    except OSError as error:
        raise ConfigError(
            f"{overrides[0]!r} cannot be started ({error}); give a command that is on the PATH."
        ) from error


def _told(found: list[Finding], title: str, *, quiet: bool = False) -> int:
    """Print the findings; the exit status that they stand for."""
    if not quiet:
        shown(found, title)
    return int(any(each.state == BAD for each in found))
