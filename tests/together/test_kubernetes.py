"""configs/kubernetes/pytorchjob.yaml: its command runs with the environment that Kubeflow's operator gives its pods."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.support.forked import ROOT, Started, module

MANIFEST = ROOT / "configs" / "kubernetes" / "pytorchjob.yaml"
LINE = ("--steps", "60", "--width", "32", "--precision", "64-true")


@pytest.fixture(scope="module")
def documents():
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text())}


def container(job):
    """The one container of each pod."""
    (found,) = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"]
    return found


def pods(job, address, port):
    """By pod, what the operator sets (release 1.9, pkg/controller.v1/pytorch/envvar.go), and the manifest."""
    replicas, each = job["spec"]["pytorchReplicaSpecs"], job["spec"]["nprocPerNode"]
    count = sum(replica["replicas"] for replica in replicas.values())
    (listening,) = container(job)["ports"]
    # By these two it finds the port.
    assert (container(job)["name"], listening["name"]) == ("pytorch", "pytorchjob-port")
    ours = {variable["name"]: variable["value"] for variable in container(job)["env"]}
    for rank in range(count):
        meeting = {"MASTER_ADDR": address, "MASTER_PORT": port}
        yield (
            ours
            | meeting
            | {f"PET_{name}": value for name, value in meeting.items()}
            | {
                "WORLD_SIZE": str(count * int(each)),
                "RANK": str(rank),
                "PET_NODE_RANK": str(rank),
                "PET_NPROC_PER_NODE": each,
                "PET_NNODES": str(count),
            }
        )


def started(job, folder, start):
    """The pods of one start."""
    program, *arguments = container(job)["args"]
    assert program == "torchrun"
    arguments = [word.replace("/runs", str(folder)) for word in arguments]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    return [
        Started(folder / f"pod {rank} {start}", "torch.distributed.run", *arguments, "--every", 4, *LINE, **environment)
        for rank, environment in enumerate(pods(job, "127.0.0.1", port))
    ]


@pytest.mark.slow
def test_a_pod_that_is_evicted_has_saved_and_both_go_on(documents, tmp_path):
    job = documents["PyTorchJob"]
    first, folder = started(job, tmp_path, "first"), tmp_path / "second-order"
    end = time.monotonic() + 120
    while not (folder / "step=8.ckpt").exists():
        assert time.monotonic() < end, [pod.err.read_text()[-3000:] for pod in first]
        time.sleep(0.02)
    os.kill(first[1].process.pid, signal.SIGTERM)
    ends = [pod.ended(60) for pod in first]
    # Neither is a success, so that both are started again.
    assert all(done.returncode for done in ends)
    assert "signal 15 at step" in ends[0].stdout

    again = [pod.ended(120) for pod in started(job, tmp_path, "again")]
    assert [done.returncode for done in again] == [0, 0], again[0].stderr[-3000:]
    assert "Restored all states" in again[0].stderr
    alone = module(tmp_path / "alone", "examples.restart", "--folder", tmp_path / "one", *LINE)
    assert alone.returncode == 0, alone.stderr[-3000:]
    found, expected = (torch.load(at / "weights.pt", weights_only=True) for at in (folder, tmp_path / "one"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_what_a_pod_needs_to_go_on(documents):
    claim = documents["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for replica in documents["PyTorchJob"]["spec"]["pytorchReplicaSpecs"].values():
        pod = replica["template"]["spec"]
        assert replica["restartPolicy"] == "OnFailure"
        (inside,) = pod["containers"]
        # The image's entry point passes signals on: a command would stand in its place.
        assert "command" not in inside
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in inside["volumeMounts"]}
        assert mounts["/runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory"}
        waits = {variable["name"]: variable["value"] for variable in inside["env"]}["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
        assert int(waits) < pod["terminationGracePeriodSeconds"]
        folder = Path(inside["args"][inside["args"].index("--folder") + 1])
        assert folder.is_relative_to("/runs")
