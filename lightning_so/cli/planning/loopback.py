"""How fast processes of this machine exchange, and what they take of each other's pace: measured, not supposed."""

import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_so.cli.planning.exchanged import own_exchanges
from lightning_so.cli.planning.network import Network, carried
from lightning_so.cli.planning.world import World
from lightning_so.comm import Local
from lightning_so.comm.cut import cut
from lightning_so.comm.meeting import meeting
from lightning_so.core.overhead.clock import Clock
from lightning_so.linalg.triangle import pack, unpack

#: Bytes of the messages, and how often each is sent; the first of them are not counted.
SIZES, TIMES, WARM = (2**10, 2**16, 2**20, 2**22), 24, 4
#: Layers and width of the nets with which DDP and FSDP2 are timed: many small tensors, few large ones.
NETS = ((48, 8), (4, 512))
#: Side of the windows that are packed, summed and unpacked; and of what neighbours multiply.
SIDE = 512
#: Processes that are asked at most.
MOST = 8
#: What was timed, of how many tensors and bytes.
Timed = tuple[str, int, int]


def loopback(clock: Clock, ranks: int = 2) -> Network:
    """Have some gloo processes exchange messages of a few sizes, and gradients of two nets.

    Args:
        clock: By what is timed: wall time, or the CPU's.
        ranks: How many there will be; of more than `MOST` so many are asked.

    Returns:
        The network, of which nothing overlaps: all of it takes the CPU's time.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ranks = min(ranks, MOST)
    with ProcessPoolExecutor(ranks, get_context("spawn")) as pool:
        asked = [pool.submit(_exchange, rank, ranks, port, clock) for rank in range(ranks)]
        both = [each.result() for each in asked]
    seconds = {what: max(each[what] for each in both) for what in both[0]}
    return fitted(seconds, ranks)


def fitted(seconds: Mapping[Timed, float], ranks: int = 2) -> Network:
    """The network of some timings.

    Args:
        seconds: By ("sum", 1, bytes) those of an all-reduce; by ("windows", 1, bytes) those of a window; by ("ddp",
            tensors, bytes) what DDP adds to a step, by ("fsdp", tensors, bytes) what FSDP2 does.
        ranks: Of how many.

    Returns:
        The least squares of the relative errors of `Network.seconds`, and of what a strategy adds beyond
        its exchanges `tensors * a + bytes * b`; nothing is below zero.
    """
    sums = {size: each for (what, _, size), each in seconds.items() if what == "sum"}
    windows = next((size / each for (what, _, size), each in seconds.items() if what == "windows"), None)
    hops, carry = math.ceil(math.log2(ranks)), carried("all_reduce", ranks)
    latency, pace = _solved([(hops, carry * size) for size in sums], [*sums.values()])
    bare = Network(1 / pace, latency, overlaps=False, windows=windows)

    def beyond(strategy: str) -> tuple[float, float]:
        ours = {(n, size): each for (what, n, size), each in seconds.items() if what == strategy}
        sent = [bare.seconds(own_exchanges(World(1, ranks, strategy), size).values(), ranks) for _, size in ours]
        rest = [max(0.0, each - of) for each, of in zip(ours.values(), sent, strict=True)]
        return _solved([(float(n), float(size)) for n, size in ours], rest) if ours else (0.0, 0.0)

    return replace(bare, wrapper=beyond("ddp"), sharding=beyond("fsdp"))


def _solved(rows: list[tuple[float, float]], wanted: list[float]) -> tuple[float, float]:
    """Two numbers, not negative, of least squares of relative errors."""
    A, y = torch.tensor(rows, dtype=torch.float64), torch.tensor(wanted, dtype=torch.float64)
    weights = 1 / y.clamp_min(1e-9)
    a, b = torch.linalg.lstsq(A * weights[:, None], (y * weights)[:, None]).solution.flatten().tolist()
    return max(a, 0.0), max(b, 1e-15)


def _exchange(rank: int, ranks: int, port: int, clock: Clock) -> dict[Timed, float]:
    """What one of the processes sees."""
    torch.set_num_threads(1)
    with meeting("127.0.0.1", port, rank, ranks, backend="gloo", patience=120) as comm:
        timed = partial(_median, clock, comm.sum)
        found = {("sum", 1, size): timed(partial(comm.sum, torch.zeros(size // 4))) for size in SIZES}
        window = [torch.randn(SIDE, SIDE)]
        found["windows", 1, pack(window).nbytes] = timed(partial(_window, comm, window))
        for layers, width in NETS:
            found |= _wrapped(layers, width, timed)
        return found


def _wrapped(layers: int, width: int, timed: Callable[[Callable[[], None]], float]) -> dict[Timed, float]:
    """What strategies add to a step of a net."""
    rows = torch.randn(8, width)

    def step(wrap: Callable[[nn.Module], nn.Module]) -> float:
        net = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
        called = wrap(net)
        # Pieces are tensors of another class, which the optimizer meets too.
        optimizer = torch.optim.AdamW(net.parameters())

        def work() -> None:
            optimizer.zero_grad()
            called(rows).sum().backward()
            optimizer.step()

        return timed(work)

    alone, shape = step(nn.Module.train), (2 * layers, 4 * layers * width * (width + 1))
    wraps = {"ddp": DistributedDataParallel, "fsdp": cut}
    return {(strategy, *shape): max(0.0, step(wrap) - alone) for strategy, wrap in wraps.items()}


def _window(comm: Local, window: list[Tensor]) -> None:
    """A window's way to its owner."""
    total = pack(window)
    comm.start_reduce(total, 0)()
    if comm.rank == 0:
        unpack(total, window)


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Have processes work beside this one, as other ranks would: they share its caches, and perhaps its cores.

    Args:
        count: How many; no more than there are cores beside this one's.

    Yields:
        Nothing; they work inside.
    """
    context = get_context("spawn")
    count = max(0, min(count, (os.cpu_count() or 1) - 1))
    ready, done = context.Semaphore(0), context.Event()
    working = [context.Process(target=_work, args=(ready, done), daemon=True) for _ in range(count)]
    for each in working:
        each.start()
    try:
        for _ in working:
            ready.acquire()
        yield
    finally:
        done.set()
        for each in working:
            each.join()


def _work(ready: Any, done: Any) -> None:
    torch.set_num_threads(1)
    X, Y = torch.randn(SIDE, SIDE), torch.randn(4 * SIDE, SIDE)
    ready.release()
    while not done.is_set():
        Y = (Y @ X).div_(SIDE**0.5)


def _median(clock: Clock, meet: Callable[[Tensor], None], work: Callable[[], None]) -> float:
    """Seconds of some work that all begin together."""
    found = []
    for _ in range(TIMES):
        meet(torch.zeros(1))
        begin = clock.moment()
        work()
        found.append(clock.seconds(begin, clock.moment()) or 0.0)
    return median(found[WARM:])
