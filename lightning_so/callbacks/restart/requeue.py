"""Put a SLURM job back into the queue: a job that ends while it is being preempted is not put back by SLURM itself."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

#: How long SLURM's controller may take to answer, in seconds.
PATIENCE = 30
#: A file by which a training in a container asks the batch script, as in configs/slurm/apptainer.sbatch.
ASKED = "requeue"


def requeue(number: int, folder: Path) -> str:
    """Have this job start again later, if it is a job and was not cancelled.

    Args:
        number: The signal that has come. SIGTERM alone is also what `scancel` sends: then only a preempted job goes on.
        folder: Where a file asks the batch script for it, from within a container, which has no scontrol.

    Returns:
        What was done, for the log.
    """
    job = this_job()
    if job is None:
        return "no SLURM job, so nothing is requeued"
    if shutil.which("scontrol") is None:
        if number == signal.SIGTERM:
            return f"scontrol is not here, and SIGTERM may be a cancellation, so job {job} is not requeued"
        (folder / ASKED).touch()
        return f"scontrol is not here; the batch script has to requeue job {job} where {folder / ASKED} exists"
    if number == signal.SIGTERM and not _preempted(job):
        return f"job {job} was cancelled, so it is not requeued"
    done = _scontrol("requeue", job)
    if done.returncode:
        return f"'scontrol requeue {job}' FAILED: {done.stderr.strip()}. Submit the job again; it goes on from here"
    return f"job {job} is requeued"


def this_job() -> str | None:
    """This job's id; of an array, with its task."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    return job if re.fullmatch(r"\d+(_\d+)?", job) else None


def _preempted(job: str) -> bool:
    match = re.search(r"\bPreemptTime=(\S+)", _scontrol("show", "job", job).stdout)
    return match is not None and match[1] not in ("None", "N/A")


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(arguments, 1, "", f"no answer within {PATIENCE} s")
