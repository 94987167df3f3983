"""What only all ranks together can see: whether they find each other, agree, and are equally fast."""

import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from lightning_so.callbacks.restart.shared import blind, told
from lightning_so.cli.health.finding import GOOD, Finding, bad, good, odd
from lightning_so.comm import Local, replicated_tensors

#: Seconds by which clocks may differ; time stamps of logs and of checkpoints are compared across nodes.
SKEW = 1.0
#: How much slower than the fastest a rank may be.
SLOWER = 2.0
#: What has to be the same everywhere, because weights depend on it.
EQUAL = ("versions", "backend")


def check(comm: Local, folder: Path | None, seconds: float) -> list[Finding]:
    """One sum, the clocks, the speeds, and whether the folder is one.

    Args:
        comm: How ranks talk.
        folder: The folder; None for none.
        seconds: What this rank's solve took.

    Returns:
        Findings, the same on every rank.
    """
    begin = time.perf_counter()
    total = torch.full((1 << 18,), float(comm.rank + 1))
    comm.sum(total)
    took, wanted = time.perf_counter() - begin, comm.ranks * (comm.ranks + 1) / 2
    clocks = [row[0] for row in _numbers(comm, [time.time()])]
    rows = _numbers(comm, [seconds, took, float(bool((total == wanted).all()))])
    wrong = [rank for rank, row in enumerate(rows) if not row[2]]
    if wrong:
        found = [bad("all-reduce", f"a sum of 1 MiB is wrong on ranks {wrong}", "check the network of these nodes")]
    else:
        found = [good("all-reduce", f"1 MiB over {comm.ranks} ranks in {1e3 * max(row[1] for row in rows):.0f} ms")]
    # They are read at once after one exchange, so that they differ by its duration besides.
    skew = max(clocks) - min(clocks) - max(row[1] for row in rows)
    late = max(range(comm.ranks), key=lambda rank: abs(clocks[rank] - clocks[0]))
    if skew > SKEW:
        found += [odd("clocks", f"rank {late}'s is {clocks[late] - clocks[0]:+.1f} s off rank 0's", "chronyc makestep")]
    slow = max(range(comm.ranks), key=lambda rank: rows[rank][0])
    ratio = rows[slow][0] / min(row[0] for row in rows)
    told = f"the slowest rank ({slow}) takes {ratio:.1f} times the fastest's time to solve"
    if ratio > SLOWER:
        found += [odd("speeds", told, f"look at what else runs on rank {slow}'s node")]
    else:
        found += [good("speeds", told)]
    return found + _shared(comm, folder)


def _shared(comm: Local, folder: Path | None) -> list[Finding]:
    """Whether every rank sees what rank 0 writes."""
    if folder is None or comm.ranks == 1:
        return []
    ranks = blind(comm, folder)
    if not ranks:
        return [good("shared folder", f"all {comm.ranks} ranks see the same {folder}")]
    move = "give --folder a path on a disk that all nodes share, and the Trainer too"
    return [bad("shared folder", f"ranks {ranks} do not see what rank 0 writes to {folder}", move)]


def apart(comm: Local) -> dict[str, str]:
    """Variables by which the ranks of a training find each other in a store of their own.

    torchrun keeps one store for all of its restarts (torch 2.13), in which restarted ranks find the addresses of those
    that have died.

    Args:
        comm: How ranks talk.

    Returns:
        The variables: rank 0 listens itself, on a port that was free.
    """
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = int(_numbers(comm, [listener.getsockname()[1]])[0][0])
    return {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def merged(comm: Local, mine: Sequence[Finding]) -> list[Finding]:
    """Every rank's findings as one list: what is good everywhere is said once.

    Args:
        comm: How ranks talk.
        mine: This rank's.

    Returns:
        The list, the same on every rank.
    """
    ranks = told(comm, [asdict(each) for each in mine])
    by_check: dict[str, list[tuple[int, Finding]]] = {}
    for rank, rows in enumerate(ranks):
        for row in rows:
            each = Finding(**row)
            by_check.setdefault(each.check, []).append((rank, each))
    found: list[Finding] = []
    for check, seen in by_check.items():
        worse = [(rank, each) for rank, each in seen if each.state != GOOD]
        found += [Finding(check, each.state, f"rank {rank}: {each.seen}", each.remedy) for rank, each in worse]
        texts = {each.seen for _, each in seen}
        if not worse and check in EQUAL and len(texts) > 1:
            differ = "; ".join(f"rank {rank}: {each.seen}" for rank, each in seen if each.seen != seen[0][1].seen)
            found += [bad(check, f"rank 0: {seen[0][1].seen}; {differ}", "install the same on all nodes")]
        elif not worse:
            found += [seen[0][1]]
    return found


def _numbers(comm: Local, mine: Sequence[float]) -> list[list[float]]:
    """Some numbers of each rank, on all ranks."""
    rows = replicated_tensors(comm, [[torch.tensor(mine, dtype=torch.float64)]] * comm.ranks)
    return [row.tolist() for (row,) in rows]
