"""Trainings under a real SLURM, by the templates of configs/slurm: signalled, preempted, requeued, resumed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.cluster.slurm import cluster

__all__ = ["cluster"]

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "configs/slurm"
STEPS = 60
ARGUMENTS = ("--steps", str(STEPS), "--width", "32", "--precision", "64-true")
#: The tests' own environment instead of what a user has on the PATH, and one thread a rank.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


class Training:
    """A job of a template, its folder and its output."""

    def __init__(self, cluster, folder, template, nodes, tasks, *options, steps=STEPS, every=0):
        self.cluster, self.folder, self.output = cluster, folder, folder.with_suffix(".out")
        size = [f"--nodes={nodes}", f"--output={self.output}", f"--chdir={ROOT}"]
        if template != "elastic.sbatch":
            size.append(f"--ntasks-per-node={tasks}")
        script = (str(TEMPLATES / template), "--steps", str(steps), "--every", str(every), *ARGUMENTS[2:])
        self.number = cluster.submit(*size, *options, *script, RUN=str(folder), RANKS=str(tasks), PATH=PATH)

    def said(self):
        return self.output.read_text() if self.output.exists() else ""

    def weights(self):
        return torch.load(self.folder / "weights.pt", weights_only=True)

    def steps(self):
        """Steps of the checkpoints that it was stopped with."""
        return [int(step) for step in re.findall(r"signal \d+ at step (\d+)", self.said())]

    def saved(self):
        """Steps of the checkpoints that are there."""
        return [int(path.stem.split("=")[1]) for path in self.folder.glob("step=*.ckpt")]


def alone(folder, steps=STEPS):
    """The same training in one process, without SLURM."""
    line = [sys.executable, "-m", "examples.restart", "--folder", str(folder), "--steps", str(steps), *ARGUMENTS[2:]]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "weights.pt", weights_only=True)


def equal(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def near(a, b, tolerance):
    return all(torch.allclose(value, b[name], rtol=0, atol=tolerance) for name, value in a.items())


@pytest.fixture(scope="module")
def straight(cluster, tmp_path_factory):
    """Weights that were not interrupted, by tasks of a node; the jobs run side by side."""
    folder = tmp_path_factory.mktemp("straight")
    jobs = {tasks: Training(cluster, folder / str(tasks), "multi_node.sbatch", 2, tasks) for tasks in (1, 2)}
    weights = {0: alone(folder / "alone")}
    for tasks, job in jobs.items():
        (end,) = cluster.ended(job.number)
        assert end["JobState"] == "COMPLETED", job.said()
        assert "all-reduce" in job.said()
        weights[tasks] = job.weights()
    return weights


def test_two_nodes_equal_one_process(straight):
    for tasks in (1, 2):
        assert near(straight[tasks], straight[0], 1e-6), tasks


@pytest.mark.fault("SIGUSR1 from SLURM, and preemption by a higher partition")
def test_a_signal_requeues_and_preemption_does(cluster, straight, seen, tmp_path):
    signalled = Training(cluster, tmp_path / "signalled", "multi_node.sbatch", 2, 1, every=4)
    preempted = Training(cluster, tmp_path / "preempted", "multi_node.sbatch", 2, 2, every=4)
    for job, disturb in (
        (signalled, lambda: cluster.run("scancel", "--signal=USR1", signalled.number)),
        # All CPUs of both nodes: whoever runs in the other partition has to leave.
        (preempted, lambda: cluster.submit("-p", "high", "-N2", "-n8", f"--output={tmp_path}/high", "--wrap=sleep 1")),
    ):
        cluster.until(lambda job=job: (job.folder / "step=8.ckpt").exists(), 240)
        disturb()
    for job, tasks in ((signalled, 1), (preempted, 2)):
        (end,) = cluster.ended(job.number)
        assert end["JobState"] == "COMPLETED", job.said()
        assert f"job {job.number} is requeued" in job.said()
        # The first may be back by the time that the nodes are taken, and have to leave again.
        assert len(job.steps()) == int(end["Restarts"]) >= 1
        assert all(8 <= step < STEPS for step in job.steps())
        assert equal(job.weights(), straight[tasks])
    steps = f"2x1 signalled at step {signalled.steps()[0]}, 2x2 preempted at {preempted.steps()[-1]}"
    seen(f"{steps}: saved, requeued, resumed bit for bit")


@pytest.mark.fault("SIGUSR1 from SLURM while Python still imports")
def test_a_signal_before_the_training_is_not_lost(cluster, straight, seen, tmp_path):
    job = Training(cluster, tmp_path / "early", "multi_node.sbatch", 2, 1)
    cluster.until(lambda: blocking(job.folder) == 2, 120)
    cluster.run("scancel", "--signal=USR1", job.number)
    (end,) = cluster.ended(job.number)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), job.said()
    assert f"job {job.number} is requeued" in job.said()
    (step,) = job.steps()
    # At the first boundary the ranks ask, and at the second they answer.
    assert step <= 2
    assert equal(job.weights(), straight[1])
    seen(f"it waits until the training has begun; saved at step {step}, requeued, resumed bit for bit")


def blocking(folder):
    """How many Pythons of this training have begun, to which SIGUSR1 would wait."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            program, *arguments = (process / "cmdline").read_bytes().split(b"\0")
            blocked = re.search(r"SigBlk:\s*(\w+)", (process / "status").read_text())[1]
        except OSError:
            continue
        python = b"python" in program and bytes(folder) in arguments
        found += python and bool(int(blocked, 16) >> signal.SIGUSR1 - 1 & 1)
    return found


@pytest.mark.fault("the end of a SLURM job's time, and a job that is cancelled")
def test_a_job_at_the_end_of_its_time_is_requeued_and_a_cancelled_one_is_not(cluster, seen, tmp_path):
    # SLURM looks every half minute whose time is over: of a job of one minute, between its seconds 2 and 32.
    options = ("--time=1", "--signal=USR1@58")
    job = Training(cluster, tmp_path / "ended", "multi_node.sbatch", 1, 1, *options, steps=50_000, every=4)
    cluster.until(lambda: f"job {job.number} is requeued" in job.said(), 120)
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=10")
    (first,) = job.steps()
    cluster.until(lambda: any(step > first for step in job.saved()), 240)
    cluster.run("scancel", "--signal=TERM", job.number)
    (end,) = cluster.ended(job.number)
    # The batch script ends with the training's own status.
    assert (end["JobState"], end["Restarts"], end["ExitCode"]) == ("FAILED", "1", "143:0"), job.said()
    assert "was cancelled, so it is not requeued" in job.said()
    assert job.steps()[-1] in job.saved()
    seen(f"saved at step {first} and requeued; when cancelled, saved and not requeued, and the job's status is 143")


@pytest.mark.fault("a node that is lost by a task of a SLURM array, and comes back")
def test_a_lost_node_is_gone_on_without_and_with_once_it_is_back(cluster, seen, tmp_path):
    folder, steps = tmp_path / "elastic", 100
    job = Training(cluster, folder, "elastic.sbatch", "1-2", 1, "--array=1", steps=steps, every=4)
    job.number += "_1"
    cluster.until(lambda: 8 in job.saved(), 120)
    assert ranks(job) == [2]
    cluster.lose("n2")
    left = max(job.saved())
    cluster.until(lambda: ranks(job) == [2, 1], 120)
    cluster.start("n2")
    cluster.until(lambda: cluster.idle() == 1 and max(job.saved()) > left, 120)
    cluster.run("scancel", "--signal=USR1", job.number)
    (end,) = cluster.ended(job.number)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "2"), job.said()
    # It is gone on from the last checkpoint without the node, and from the step at which the signal came with it.
    assert ranks(job) == [2, 1, 2]
    first, second = map(int, re.findall(r"Restored all states from the checkpoint at .*step=(\d+)", job.said()))
    assert left <= first < second == job.steps()[0] < steps
    assert near(job.weights(), alone(tmp_path / "alone", steps), 1e-6)
    seen(f"two ranks up to step {first}, one to step {second}, two again to step {steps}: weights as of one process")


def ranks(job):
    """On how many ranks it was, at each of its starts."""
    return [int(count) for count in re.findall(r"rank 0 of (\d+), started by srun", job.said())]


def test_launch(cluster, straight, tmp_path):
    program = ["python", "-m", "examples.restart", "--folder", str(tmp_path), "--num-nodes", "2", *ARGUMENTS]
    line = ["lightning-so", "launch", "--nodes", "2", "--folder", str(tmp_path), "--time", "10", "--", *program]
    environment = {**cluster.environment, "PATH": PATH, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    number = re.search(r"job (\d+)", done.stdout)[1]
    assert "--signal=USR1@180" in cluster.run("scontrol", "write", "batch_script", number, "-")
    (end,) = cluster.ended(number)
    assert end["JobState"] == "COMPLETED", [path.read_text() for path in tmp_path.rglob("*.out")]
    assert equal(torch.load(tmp_path / "weights.pt", weights_only=True), straight[1])


BAD = {
    "--ntasks-per-node": ("-N2 -n2 --ntasks-per-node=1", "--devices 2", "#SBATCH --ntasks-per-node=2"),
    "no --ntasks-per-node": ("-N2 -n2", "--devices 1", "#SBATCH --ntasks-per-node=1"),
    "job name": ("-N1 -n1 --job-name=bash", "", "#SBATCH --job-name=train"),
    "port": ("-N2 -n2 --ntasks-per-node=1 --export=ALL,MASTER_PORT={port}", "", "export MASTER_PORT="),
    "folder": ("-N2 -n2 --ntasks-per-node=1", "--folder {folder}/nowhere", "mkdir -p {folder}/nowhere"),
    "checkpoint": ("-N1 -n1", "--checkpoint {folder}/step=2.ckpt", "mv {folder}/step=2.ckpt"),
}


@pytest.fixture(scope="module")
def refusals(cluster, tmp_path_factory):
    """All of them, side by side: by name, the process and the line."""
    environment, found = {**cluster.environment, "PATH": PATH, "OMP_NUM_THREADS": "1"}, {}
    how = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        for what, parts in BAD.items():
            folder = tmp_path_factory.mktemp("refused")
            (folder / "step=2.ckpt").write_bytes(b"PK half of a checkpoint")
            fill = {"port": listener.getsockname()[1], "folder": folder}
            launch, arguments, line = (part.format(**fill) for part in parts)
            program = ["lightning-so", "doctor", *arguments.split(), "--", "echo", "trained"]
            command = ["srun", "--kill-on-bad-exit=1", *launch.split(), *program]
            found[what] = subprocess.Popen(command, **how), line
            time.sleep(0.5)  # A slurmd that launches several steps in one moment may abort on a double free.
        yield found


@pytest.mark.parametrize("what", BAD)
def test_the_doctor_refuses_with_the_line_to_change(refusals, what):
    process, line = refusals[what]
    out, err = process.communicate(timeout=120)
    assert process.returncode, out
    assert line in out, out + err
    assert "trained" not in out
