"""A training that notes every step's loss, on the hosts of an elastic torchrun: agents that come and are lost."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from examples import restart
from tests.cluster.hosts import inside
from tests.support.forked import forking, module

#: Processes of a host, and where the hosts find each other.
RANKS, PORT = 2, 29400
STEPS, EVERY = 40, 4
#: Seconds that ranks wait for one that is lost.
TIMEOUT = 6
#: torchrun's patience in seconds: with more hosts once there are enough, and with one that is silent, three times that.
CONF = "last_call_timeout=1,keep_alive_interval=2"
LINE = ("--width", "16", "--steps", str(STEPS), "--precision", "64-true")


class Losses(pl.Callback):
    """Rank 0 notes the mean of all ranks' losses and the samples of every step, and on how many ranks it was made."""

    def __init__(self, folder, pause) -> None:
        self.path, self.pause = Path(folder) / "losses.jsonl", pause

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        loss = outputs["loss"].detach().double()
        if trainer.world_size > 1:
            dist.all_reduce(loss)
        if trainer.is_global_zero:
            line = {"step": trainer.global_step, "loss": loss.item() / trainer.world_size, "ranks": trainer.world_size}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        # Longest while a host is away, which takes a while to come back.
        time.sleep(self.pause if trainer.world_size > RANKS else 5 * self.pause)


def noted(folder):
    """What was noted of every step that was made, in the order of time."""
    path = Path(folder) / "losses.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if path.exists()
        else []
    )


def losses(folder):
    """The mean loss of all ranks at every step, the last time that it was made."""
    found = {line["step"]: line["loss"] for line in noted(folder)}
    assert sorted(found) == list(range(1, STEPS + 1))
    return list(found.values())


class Agent:
    """torchrun on one host, with all that it starts.

    Args:
        hosts: All of them; the first has the store.
        number: Which one this is.
        folder: Of the training.
        pause: Seconds after every step, in which something can happen.
    """

    def __init__(self, hosts, number, folder, pause) -> None:
        self.host, self.said = hosts[number], folder.with_name(f"{folder.name} host {number} {time.monotonic()}.txt")
        self.said.touch()
        store = f"{hosts[0].address}:{PORT}"
        self.process = forking().Process(target=agent, args=(self.host, store, folder, pause, self.said))
        self.process.start()

    def lose(self) -> None:
        """The host goes down: its cable is out, so that nobody is told, and its processes are gone."""
        self.host.cut()
        for pid in inside(self.host.pid):
            if pid != self.host.pid:
                os.kill(pid, signal.SIGKILL)
        self.process.join()


def agent(host, store, folder, pause, said) -> None:
    """What an agent's process does."""
    from tests.support.forked import prepared

    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    prepared()
    host.enter()
    # Otherwise torchrun keeps one store for all of its starts, on the first host of the first one.
    os.environ |= {"GLOO_SOCKET_IFNAME": "eth0", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
    elastic = ["--nnodes=1:2", f"--nproc-per-node={RANKS}", "--max-restarts=3"]
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={store}", "--rdzv-id=elastic"]
    # By itself it compares names, which these hosts do not have.
    conf = f"is_host={int(host.number == 0)},{CONF}"
    quickly = [f"--rdzv-conf={conf}", f"--local-addr={host.address}", "--monitor-interval=0.1"]
    sys.argv = ["torchrun", *elastic, *meeting, *quickly, "-m", "tests.cluster.elastic", str(folder), str(pause)]
    from torch.distributed.run import main

    main()


def main(folder, pause) -> None:
    """One rank, or the only one."""
    torch.set_num_threads(1)
    saving = ["--every", str(EVERY), "--timeout", str(TIMEOUT)]
    restart.main(["--folder", folder, *LINE, *saving], Losses(folder, float(pause)))


def alone(folder):
    """The same training in one process that nobody disturbs."""
    folder.mkdir()
    done = module(folder.with_name(f"{folder.name} said"), "tests.cluster.elastic", folder, 0)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    main(*sys.argv[1:])
