"""How fast two processes of this machine exchange, and what they take of each other's pace: measured, not supposed."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_so.cli.planning.network import Network
from lightning_so.comm import Local
from lightning_so.comm.meeting import meeting
from lightning_so.core.overhead.clock import Clock
from lightning_so.linalg.triangle import pack, unpack

#: Bytes of the messages, and how often each is sent; the first of them are not counted.
SIZES, TIMES, WARM = (2**10, 2**16, 2**20, 2**22), 24, 4
#: Layers and width of the nets with which DDP is timed: many small tensors, few large ones.
NETS = ((48, 8), (4, 512))
#: Side of the windows that are packed, summed and unpacked; and of what neighbours multiply.
SIDE = 512


def loopback(clock: Clock) -> Network:
    """Have two gloo processes exchange messages of a few sizes, and gradients of two nets.

    Args:
        clock: By what is timed: wall time, or the CPU's.

    Returns:
        The network, of which nothing overlaps: all of it takes the CPU's time.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        asked = [pool.submit(_exchange, rank, port, clock) for rank in range(2)]
        both = [each.result() for each in asked]
    seconds = {what: max(each[what] for each in both) for what in both[0]}
    return fitted(seconds)


def fitted(seconds: Mapping[tuple[str, int, int], float]) -> Network:
    """The network of some timings of two ranks.

    Args:
        seconds: By ("sum", 1, bytes) those of an all-reduce; by ("windows", 1, bytes) those of a window; by ("ddp",
            tensors, bytes) what DDP adds to a step.

    Returns:
        The least squares of the relative errors of `latency + bytes / bandwidth`, and of what DDP adds beyond that
        `tensors * a + bytes * b`; nothing is below zero.
    """
    sums = {size: each for (what, _, size), each in seconds.items() if what == "sum"}
    windows = next((size / each for (what, _, size), each in seconds.items() if what == "windows"), None)
    latency, pace = _solved([(1.0, float(size)) for size in sums], [*sums.values()])
    ddp = {(n, size): each for (what, n, size), each in seconds.items() if what == "ddp"}
    beyond = [max(0.0, each - latency - pace * size) for (_, size), each in ddp.items()]
    return Network(1 / pace, latency, _solved([(float(n), float(size)) for n, size in ddp], beyond), False, windows)


def _solved(rows: list[tuple[float, float]], wanted: list[float]) -> tuple[float, float]:
    """Two numbers, not negative, of least squares of relative errors."""
    A, y = torch.tensor(rows, dtype=torch.float64), torch.tensor(wanted, dtype=torch.float64)
    weights = 1 / y.clamp_min(1e-9)
    a, b = torch.linalg.lstsq(A * weights[:, None], (y * weights)[:, None]).solution.flatten().tolist()
    return max(a, 0.0), max(b, 1e-15)


def _exchange(rank: int, port: int, clock: Clock) -> dict[tuple[str, int, int], float]:
    """What one of two processes sees."""
    torch.set_num_threads(1)
    with meeting("127.0.0.1", port, rank, 2, backend="gloo", patience=120) as comm:
        timed = partial(_median, clock, comm.sum)
        found = {("sum", 1, size): timed(partial(comm.sum, torch.zeros(size // 4))) for size in SIZES}
        window = [torch.randn(SIDE, SIDE)]
        found["windows", 1, pack(window).nbytes] = timed(partial(_window, comm, window))
        for layers, width in NETS:
            net = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
            rows = torch.randn(8, width)
            alone = timed(lambda net=net, rows=rows: net(rows).sum().backward())
            wrapped = DistributedDataParallel(net)
            both = timed(lambda net=wrapped, rows=rows: net(rows).sum().backward())
            size = sum(param.nbytes for param in net.parameters())
            found["ddp", 2 * layers, size] = max(0.0, both - alone)
        return found


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
    """Seconds of some work that both begin together."""
    found = []
    for _ in range(TIMES):
        meet(torch.zeros(1))
        begin = clock.moment()
        work()
        found.append(clock.seconds(begin, clock.moment()) or 0.0)
    return median(found[WARM:])
