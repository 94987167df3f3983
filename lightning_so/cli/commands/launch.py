"""The command `lightning-so launch`."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from lightning_so.callbacks.restart.place import local
from lightning_so.errors import ConfigError, LaunchError, MissingError, check_count, installed_by

#: SLURM may signal a minute early, and a process needs to start before it can save.
LEAD = 180


def command(
    nodes: int = 1,
    ntasks_per_node: int = 1,
    time: int = 60,
    folder: Path = Path("runs"),
    gpus_per_node: int | None = None,
    cpus_per_task: int | None = None,
    partition: str | None = None,
    account: str | None = None,
    name: str = "second-order",
    lead: int = LEAD,
    doctor: bool = True,
    overrides: list[str] | None = None,
) -> int:
    """Submit a training to SLURM, which is signalled before its time is over, saves, and goes on when it is requeued.

    The command behind "--" runs once a task: `lightning-so launch --nodes 2 --ntasks-per-node 4 -- python train.py`.
    Its script has Trainer(devices=4, num_nodes=2, callbacks=[..., Restartable(folder)]). Signals wait until the
    training catches them, and the job ends with its exit status. By submitit. Exit status: 0 submitted, 2 not.

    Examples:
        lightning-so launch --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 -- python train.py
        lightning-so launch --time 120 -- lightning-so fit --config my.yaml

    Args:
        nodes: Nodes of the job.
        ntasks_per_node: Processes of a node, one a device.
        time: Minutes that the job may run before it is signalled and requeued.
        folder: Where output goes; all nodes must see it.
        gpus_per_node: GPUs of a node.
        cpus_per_task: CPU cores of a process.
        partition: SLURM's partition.
        account: Whom SLURM charges.
        name: The job's name.
        lead: Seconds between the signal and the end: start-up and 60 s, and a save.
        doctor: Whether to run `lightning-so doctor` on the launch first.
        overrides: The command.

    Returns:
        The exit status.

    Raises:
        ConfigError: If an argument is wrong, the command is missing, or this is no cluster.
        LaunchError: If SLURM refuses the job.
    """
    if not overrides:
        raise ConfigError("launch: there is no command. Give it behind '--': lightning-so launch -- python train.py")
    for option, value, low, high in (
        ("nodes", nodes, 1, 100_000),
        ("ntasks_per_node", ntasks_per_node, 1, 1024),
        ("time", time, 1, 1_000_000),
        # Less than this SLURM's own imprecision may use up.
        ("lead", lead, 61, 60 * time),
    ):
        check_count("launch", option, value, low, high)
    for option, text in (("name", name), ("partition", partition), ("account", account)):
        if text is not None and not (text and text.isprintable()):
            raise ConfigError(
                f"launch({option}={text!r}): a line break would begin a line of the batch script. Give a name of signs "
                "that can be printed."
            )
    folder = local("launch", folder)
    if shutil.which("sbatch") is None:
        raise ConfigError("launch: sbatch is not on the PATH. Submit from a node of the cluster that can, or add it.")
    folder.mkdir(parents=True, exist_ok=True)
    submitit, failed = _submitit()
    program = [*_doctor(ntasks_per_node, nodes, folder), *overrides] if doctor else list(overrides)
    executor = submitit.SlurmExecutor(
        folder=folder / "slurm", python=f"env --block-signal=USR1,TERM {shlex.quote(sys.executable)}"
    )
    wanted = {
        "gpus_per_node": gpus_per_node,
        "cpus_per_task": cpus_per_task,
        "partition": partition,
        "account": account,
    }
    executor.update_parameters(
        job_name=name,
        nodes=nodes,
        ntasks_per_node=ntasks_per_node,
        time=time,
        signal_delay_s=lead,
        stderr_to_stdout=True,
        srun_args=["--kill-on-bad-exit=1"],
        additional_parameters={"requeue": True},
        **{option: value for option, value in wanted.items() if value is not None},
    )
    try:
        # The task becomes the command: signals and the exit status are the command's own.
        job = executor.submit(os.execvp, program[0], program)
    except failed as error:
        raise LaunchError(f"sbatch refused the job: {error}") from error
    print(f"job {job.job_id}: {shlex.join(overrides)}\noutput: {job.paths.stdout}")
    return 0


def _doctor(devices: int, num_nodes: int, folder: Path) -> list[str]:
    """The beginning of a command line that looks before it becomes what follows."""
    options = ["--devices", str(devices), "--num-nodes", str(num_nodes), "--folder", str(folder)]
    return [sys.executable, "-m", "lightning_so.cli", "doctor", *options, "--"]


def _submitit() -> tuple[Any, type[Exception]]:
    """The library, and what it raises where sbatch fails."""
    # Read when it is imported: it sends USR2 otherwise, which Restartable does not listen to.
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError as error:
        raise MissingError(f"launch needs submitit: {installed_by('slurm')}") from error
    return submitit, FailedJobError
