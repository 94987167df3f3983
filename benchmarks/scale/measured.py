"""The scaling model against real ranks: 1, 2 and 4 gloo processes, on loopback and on hosts that 1 Gbit/s joins.

    python -m benchmarks.scale.measured     # as root: makes hosts of network namespaces

A step is the CPU time of its slowest rank on one thread (as in `steps.planned`), because ranks share cores here; and
on hosts the time that its bytes take on the cable: those that have really left the host, headers included, over
1 Gbit/s. Wall time would be that of the cores, of which there are fewer than ranks. Against it stands the planner's
step: forty steps in one process, the schedule, CPU seconds of exchanges as so many processes of this machine show, and
on hosts the modelled bytes of each link over 1 Gbit/s.

Bytes are those that the engine hands over, memory is that of weights, gradients, moments and curvature.
"""

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shared.table import append, headed, machine, show
from benchmarks.steps.planned import LAST, METHODS, forecast_of, planned, train
from lightning_so.cli.planning.loopback import loopback
from lightning_so.cli.planning.network import Network
from lightning_so.core.overhead.clock import Clock
from tests.cluster.hosts import joined, lacking, sent_through

#: Bytes a second of a cable, and what headers leave of them.
CABLE, PAYLOAD = 1e9 / 8, 0.95
#: By fact, how far the model may be off.
ALLOWED = {"memory": 0.10, "sent": 0.20, "step": 0.20}


def rank(args: argparse.Namespace) -> None:
    """Train on one rank, and leave what was seen."""
    wire = (lambda: sent_through("eth0")) if args.link == "1gbit" else int
    meeting = f"{args.tracks}/meeting"
    found = train(args.rank, args.rank_count, meeting, args.problem, args.method, wire, args.strategy)
    Path(args.tracks, f"rank{args.rank}").write_bytes(pickle.dumps(vars(found)))


def seen(problem: str, method: str, link: str, ranks: int, strategy: str) -> dict[str, float]:
    """What a training of real ranks shows."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        program = [sys.executable, "-m", "benchmarks.scale.measured", "--problem", problem, "--method", method]
        program += ["--link", link, "--rank-count", str(ranks), "--tracks", folder, "--strategy", strategy]
        commands = [[*program, "--rank", str(number)] for number in range(ranks)]
        if link == "1gbit":
            environment["GLOO_SOCKET_IFNAME"] = "eth0"
            hosts = stack.enter_context(joined(ranks, link))
            commands = [host.command(*each) for host, each in zip(hosts, commands, strict=True)]
        processes = [subprocess.Popen(each, env=environment) for each in commands]
        if any([process.wait() for process in processes]):
            raise SystemExit("a rank has failed: see above")
        tracks = [pickle.loads(Path(folder, f"rank{number}").read_bytes()) for number in range(ranks)]
    cpu = np.array([track["seconds"][-LAST:] for track in tracks]).max(0).mean()
    wire = max(track["wire"][-LAST:].mean() for track in tracks) / CABLE
    return {
        "memory": max(track["memory"] for track in tracks),
        "sent": max(track["sent"][-LAST:].mean() for track in tracks),
        "step": cpu + 1e3 * wire,
        "cpu": cpu,
        "wire": 1e3 * wire,
    }


def foretold(problem: str, method: str, link: str, ranks: int, strategy: str, here: Network) -> dict[str, float]:
    """What the planner says."""
    found, times = forecast_of(problem, method, ranks, strategy)
    said, wire = planned(found, times, here), 0.0
    if link == "1gbit":
        cable, steps = Network(PAYLOAD * CABLE, 0.0, overlaps=False), found.exchanged.ours[0]
        wire = found.exchanged.seconds(cable, 0.0) + sum(cable.seconds(each, ranks) for each in steps) / len(steps)
    return {**said, "cpu": said["step"], "wire": 1e3 * wire, "step": said["step"] + 1e3 * wire}


def main() -> None:
    """Compare, append a JSON line a comparison, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--problem", default="byte_lm_2k")
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    add("--links", nargs="+", choices=("loopback", "1gbit"), default=("loopback", "1gbit"))
    add("--ranks", nargs="+", type=int, default=[1, 2, 4])
    add("--strategies", nargs="+", choices=("ddp", "fsdp", "hsdp"), default=("ddp",))
    add("--out", type=Path, default=Path("benchmarks/scale/results/scale_measured.jsonl"), help="lines are appended")
    for name in ("--rank", "--rank-count", "--tracks", "--method", "--link", "--strategy"):
        add(name, type=int if name.startswith("--rank") else str, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if args.rank is not None:
        return rank(args)
    if "1gbit" in args.links and (reason := lacking()):
        raise SystemExit(f"no hosts: {reason}")
    networks, lines = {ranks: loopback(Clock(), max(2, ranks)) for ranks in args.ranks}, list[dict[str, Any]]()
    for method, strategy, link, ranks in product(args.methods, args.strategies, args.links, args.ranks):
        if (ranks == 1 and (link == "1gbit" or strategy != "ddp")) or (ranks < 4 and strategy == "hsdp"):
            continue  # One host is on no cable, and has all of a parameter.
        asked = args.problem, method, link, ranks, strategy
        said, real = foretold(*asked, networks[ranks]), seen(*asked)
        off = {fact: said[fact] / real[fact] - 1 if real[fact] else None for fact in ALLOWED}
        cell = dict(zip(("problem", "method", "link", "ranks", "strategy"), asked, strict=True))
        cell |= {"network": asdict(networks[ranks])}
        lines.append({**cell, "planned": said, "measured": real, "off": off})
        append(args.out, [{**lines[-1], **machine("cpu")}])
    heads = ["method", "strategy", "link", "ranks", *(head for fact in ALLOWED for head in (fact, "planned", "off"))]
    table = headed(heads, args.problem, "memory MB, sent kB a step, step ms of CPU and cable", left=3)
    for each in lines:
        cells = []
        for fact, unit in {"memory": 1e-6, "sent": 1e-3, "step": 1.0}.items():
            off = each["off"][fact]
            cells += [f"{unit * each[of][fact]:.1f}" for of in ("measured", "planned")]
            cells.append("-" if off is None else f"{100 * off:+.1f} %{'' if abs(off) <= ALLOWED[fact] else ' !'}")
        table.add_row(each["method"], each["strategy"], each["link"], str(each["ranks"]), *cells)
    show(table)
    return None


if __name__ == "__main__":
    main()
