"""`lightning-so doctor` without a cluster: this machine, launches by their variables, folders, ranks that differ."""

import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_so.cli.__main__ import main
from lightning_so.cli.health import folder, launch, machine, together
from lightning_so.cli.health.finding import BAD, GOOD, ODD, bad, good
from lightning_so.comm import ambient

JOB = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "n1", "SLURM_NTASKS": "4"}
STEP = {**JOB, "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NNODES": "2"}
RUN = {"TORCHELASTIC_RUN_ID": "a", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def variables(monkeypatch):
    """Sets the variables of a launch, and no others of its kind."""

    def set_them(named):
        for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_"))]:
            monkeypatch.delenv(name)
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501", **named}.items():
            monkeypatch.setenv(name, value)

    return set_them


@pytest.mark.parametrize(
    ("named", "devices", "nodes", "check", "state", "line"),
    [
        ({**STEP, "SLURM_NTASKS_PER_NODE": "2"}, 2, 2, None, None, None),
        ({**STEP, "SLURM_NTASKS_PER_NODE": "2"}, 4, 2, "--ntasks-per-node", BAD, "#SBATCH --ntasks-per-node=4"),
        ({**STEP, "SLURM_NTASKS_PER_NODE": "2"}, 2, 1, "--nodes", BAD, "#SBATCH --nodes=1"),
        (STEP, 2, 2, "--ntasks-per-node", BAD, "#SBATCH --ntasks-per-node=2"),
        ({**STEP, "SLURM_JOB_NAME": "bash"}, 2, 2, "job name", BAD, "#SBATCH --job-name=train"),
        ({**JOB, "SLURM_NTASKS_PER_NODE": "4"}, 4, 1, "srun", BAD, "srun python train.py"),
        ({**JOB, "SLURM_NTASKS": "1"}, 1, 1, "srun", ODD, "srun lightning-so doctor"),
        (RUN, 2, 1, None, None, None),
        (RUN, 4, 1, "--nproc-per-node", BAD, "torchrun --nnodes 1 --nproc-per-node 4"),
        (RUN, 2, 2, "--nproc-per-node", BAD, "torchrun --nnodes 2 --nproc-per-node 2"),
        ({**RUN, "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 2, 2, "--nproc-per-node", BAD, "torchrun --nnodes 2"),
        ({}, 1, 1, None, None, None),
    ],
)
def test_a_launch_and_what_the_trainer_will_be_told(variables, named, devices, nodes, check, state, line):
    variables(named)
    found = {each.check: each for each in launch.check(launch.seen(), devices, nodes)}
    assert found.pop("launch").state == GOOD
    assert list(found) == ([] if check is None else [check])
    if check is not None:
        assert found[check].state == state
        assert found[check].remedy.startswith(line)


def test_this_machine(monkeypatch):
    here = launch.Launch("a shell", 0, 1, 0, "127.0.0.1", 0)
    found, seconds = machine.solve(torch.device("cpu"))
    assert [each.state for each in found] == [GOOD]
    assert seconds > 0
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda F: (F, torch.ones(len(F))))
    assert [each.state for each in machine.solve(torch.device("cpu"))[0]] == [BAD]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nothing0")
    (backend,) = machine.backends(torch.device("cpu"))
    assert (backend.state, backend.remedy) == (BAD, "export GLOO_SOCKET_IFNAME=<one of them>")
    if not torch.cuda.is_available():
        (device,) = machine.devices(here, "gpu", 1)
        assert (device.state, "Trainer(accelerator='cpu')" in device.remedy) == (BAD, True)


def test_threads_and_backends(monkeypatch):
    here = launch.Launch("torchrun", 0, 2, 0, "127.0.0.1", 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [each.state for each in machine.devices(here, "cpu", 2)] == [GOOD]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    (device,) = machine.devices(here, "cpu", 2)
    assert (device.state, "export OMP_NUM_THREADS=" in device.remedy) == (ODD, True)
    monkeypatch.setattr(machine, "available", lambda backend: False)
    assert [each.state for each in machine.backends(torch.device("cpu"))] == [BAD]


def test_the_port():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        taken = listener.getsockname()[1]

        def found(by, rank, port=taken):
            return [each.state for each in launch.port(launch.Launch(by, rank, 2, rank, "127.0.0.1", port))]

        # torchrun listens there itself, and others than rank 0 do not listen.
        assert (found("srun", 0), found("srun", 1), found("torchrun", 0), found("srun", 0, 0)) == ([BAD], [], [], [])
    assert found("srun", 0) == [GOOD]


def test_a_folder_that_cannot_be_written_to_and_one_with_little_room(tmp_path, monkeypatch):
    # Not even root can write there.
    (told,) = folder.check(Path("/proc"))
    assert (told.state, told.remedy) == (BAD, "df -h /proc; ls -ld /proc")
    monkeypatch.setattr(folder, "LITTLE", 1 << 62)
    assert [each.state for each in folder.check(tmp_path)] == [ODD]


def test_folders_and_checkpoints(tmp_path):
    assert [each.state for each in folder.check(tmp_path)] == [GOOD]
    assert not list(tmp_path.iterdir())
    (missing,) = folder.check(tmp_path / "nowhere")
    assert missing.remedy == f"mkdir -p {tmp_path}/nowhere"
    (quoted,) = folder.check(Path("a'; touch PWNED; '"))
    assert shlex.split(quoted.remedy) == ["mkdir", "-p", "a'; touch PWNED; '"]
    (tmp_path / "step=3.ckpt").write_bytes(b"half")
    assert [each.state for each in folder.check(tmp_path)] == [GOOD, BAD]
    assert folder.checkpoint(tmp_path / "step=4.ckpt")[0].state == BAD


def of_ranks(path):
    """What two ranks find, where one has other versions, and sees another folder."""
    comm = ambient(sharded=False)
    mine = [good("versions", f"torch {comm.rank}"), good("port", "free")]
    found = together.merged(comm, mine) + together.check(comm, path / str(comm.rank), 1.0 + 3 * comm.rank)
    variables = together.apart(comm)
    comm.close()
    return [(each.check, each.state) for each in found], variables


def test_ranks_that_do_not_fit(two, tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    ends = two.run(of_ranks, tmp_path)
    assert ends[0] == ends[1]
    found, variables = ends[0]
    assert dict(found) == {
        "versions": BAD, "port": GOOD, "all-reduce": GOOD, "speeds": ODD, "shared folder": BAD,
    }  # fmt: skip
    assert variables["TORCHELASTIC_USE_AGENT_STORE"] == "False"


def of_a_bad_network():
    """What two ranks find, where sums are wrong and one clock is."""
    comm, now = ambient(sharded=False), time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + 5 * comm.rank)
        patch.setattr(comm, "sum", lambda tensor: None)
        found = together.check(comm, None, 1.0)
    comm.close()
    return [(each.check, each.state) for each in found]


def test_a_wrong_sum_and_a_wrong_clock(two):
    for found in two.run(of_a_bad_network):
        assert dict(found) == {"all-reduce": BAD, "clocks": ODD, "speeds": GOOD}


def test_what_failed_here_waits_for_nobody(tmp_path, monkeypatch, variables):
    variables({})
    monkeypatch.setattr(machine, "solve", lambda where: pytest.fail("went on"))
    assert main(["doctor", "--accelerator", "cpu", "--folder", str(tmp_path / "nowhere")]) == 1


def test_after_what_failed_no_command_starts(monkeypatch, variables):
    variables({})
    monkeypatch.setattr(os, "execvp", lambda *_: pytest.fail("started"))
    monkeypatch.setattr(machine, "solve", lambda where: ([bad("solve", "wrong", "another node")], 1.0))
    assert main(["doctor", "--accelerator", "cpu", "--", "true"]) == 1


@pytest.mark.slow
def test_a_rank_that_meets_nobody_is_told_so(capsys, variables):
    variables({**STEP, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"})
    assert main(["doctor", "--accelerator", "cpu", "--timeout", "1"]) == 1
    said = capsys.readouterr().out
    assert "meeting: " in said
    assert "look for a rank that has ended before" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["doctor", "--accelerator", "tpu"], "accelerator must be one of"),
        (["doctor", "--", "no-such-program"], "'no-such-program' cannot be started"),
        (["launch"], "there is no command"),
        (["launch", "--lead", "30", "--", "python"], "lead must be an integer in [61"),
        (["launch", "--nodes", "0", "--", "python"], "nodes must be an integer in [1"),
        # Each would begin a line of the batch script, which the node runs.
        (["launch", "--name", "a\ntouch PWNED\n#", "--", "python"], r"launch(name='a\ntouch PWNED\n#')"),
        (["launch", "--partition", "a\rb", "--", "python"], r"launch(partition='a\rb')"),
        (["launch", "--account", "", "--", "python"], "launch(account='')"),
        (["launch", "--folder", "a\nb", "--", "python"], r"launch(folder='a\nb')"),
        (
            ["launch", "--folder", "s3://bucket/run", "--", "python"],
            "launch(folder='s3:/bucket/run'): this is an address",
        ),
        (["doctor", "--folder", "s3://bucket/run"], "doctor(folder='s3:/bucket/run'): this is an address"),
    ],
)
def test_what_cannot_be(capsys, monkeypatch, arguments, said):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_it_becomes_the_command():
    line = [sys.executable, "-m", "lightning_so.cli", "doctor", "--", "sh", "-c", "echo became; exit 7"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (7, "became")
